"""JSON schemas: exact division, comparison in linear time, and schemas that are themselves at fault."""

import pytest

from herl.checks import patterns
from herl.checks.broken import BrokenByAnswerError
from herl.checks.json_text import check_schema, is_json

DOUBLING = {str(n): {"allOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(30)} | {"30": {}}


@pytest.mark.parametrize(
    ("schema", "answer", "fits"),
    [
        ({"multipleOf": 0.01}, "19.99", True), ({"multipleOf": 0.01}, "4.35", True), ({"multipleOf": 0.1}, "0.3", True),
        ({"multipleOf": 0.1}, "0.35", False), ({"multipleOf": 0.01}, "19.995", False), ({"multipleOf": 3}, "9", True),
        ({"multipleOf": 3}, "10", False), ({"multipleOf": 1e-300}, "1e300", True), ({"multipleOf": 2}, "true", True),
        ({"multipleOf": 2}, '"x"', True),
        ({"uniqueItems": True}, "[1, 2, 3]", True), ({"uniqueItems": True}, "[1, 2, 1]", False),
        ({"uniqueItems": True}, "[1, 1.0]", False), ({"uniqueItems": True}, "[1, true]", True),
        ({"uniqueItems": True}, "[0, false]", True), ({"uniqueItems": True}, '[{"a": [1]}, {"a": [1]}]', False),
        ({"uniqueItems": True}, '[{"a": 1, "b": 2}, {"b": 2, "a": 1}]', False), ({"uniqueItems": False}, "[1, 1]", True),
        ({"uniqueItems": True}, '[{"a": 1}, {"a": true}]', True),
        ({"uniqueItems": True}, "[" + ",".join(f'{{"n": {n}}}' for n in range(20_000)) + "]", True),
        ({"properties": {"default": {"pattern": "^a"}}}, '{"default": "b"}', False),
    ],
)  # fmt: skip
def test_what_fits_a_schema(schema, answer, fits):
    check_schema(schema)
    assert is_json(answer, schema) is fits


def test_a_number_too_large_to_divide_breaks_its_check():
    with pytest.raises(BrokenByAnswerError):
        is_json("1e400", {"multipleOf": 0.5})


@pytest.mark.parametrize(
    ("schema", "why"),
    [
        ({"properties": {"default": {"pattern": "(unclosed"}}}, "the pattern .* cannot be read"),
        ({"$defs": {"enum": {"patternProperties": {"(": {}}}}}, "the pattern .* cannot be read"),
        ({"items": {"$ref": "http://127.0.0.1:9/x.json"}}, "http://127.0.0.1:9/x.json' is not in the schema"),
        (
            {"$id": "http://127.0.0.1:9/", "items": {"$ref": "x.json"}},
            r"\$ref: 'x.json' is not in the schema",
        ),
        ({"$id": "file:///", "items": {"$dynamicRef": "etc/hosts"}}, r"\$dynamicRef: 'etc/hosts' is not"),
        ({"$ref": "#"}, "it cannot be applied"),
        ({"$ref": "#/$defs/0", "$defs": DOUBLING}, "it takes longer than 0.1 s, whatever the answer is"),
        ({"requiredd": ["a"]}, "unknown keyword 'requiredd'. Did you mean 'required'?"),
        ({"items": {"additonalProperties": False}}, "Did you mean 'additionalProperties'?"),
    ],
)
def test_a_fault_of_a_schema_is_found_without_an_answer(schema, why, monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.1)
    with pytest.raises(ValueError, match=why):
        check_schema(schema)


def test_references_within_a_schema_are_found():
    check_schema({"$id": "http://x/", "$defs": {"a": {"$id": "a", "$anchor": "b"}}, "items": {"$ref": "a#b"}})


def test_notes_and_properties_may_have_any_name():
    check_schema(
        {"x-note": 1, "properties": {"requiredd": {}, "pattern": {"type": "string"}}, "default": {"typ": 1}}
    )
