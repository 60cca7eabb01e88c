"""Calls are read in each format; what only looks like one has a problem, and all else is an answer."""

import json
import time

import pytest

from herl.environment.calls import read_calls

ADD = [
    {
        "type": "function",
        "function": {
            "name": "add",
            "parameters": {
                "type": "object",
                "properties": {"a": {"type": "integer"}, "s": {"type": "string"}},
            },
        },
    }
]
XML = "<tool_call>\n<function=add>\n<parameter=a>\n7\n</parameter>\n<parameter=s>\n7\nx\n</parameter>\n</function>\n</tool_call>"


def read(text, style, raw=None):
    return [(one.name, one.arguments) for one in read_calls(text, raw or text, style, ADD)]


@pytest.mark.parametrize(
    ("style", "text", "calls"),
    [
        ("hermes", 'Hm.\n<tool_call>\n{"name": "f", "arguments": {"x": "{}"}}\n</tool_call>', [("f", {"x": "{}"})]),
        ("hermes", '<tool_call>{"name": "f", "arguments": {}}', [("f", {})]),
        ("hermes", '<tool_call>{"name": "f", "arguments": "{\\"x\\": 1}"}</tool_call>', [("f", {"x": 1})]),
        ("hermes", '<tool_call>{"name": "f"}</tool_call><tool_call>{"name": "g"}</tool_call>', [("f", {}), ("g", {})]),
        ("hermes", '{"name": "f", "arguments": {}}', []),
        ("json", ' {"name": "f", "parameters": {"x": 1}}; {"name": "g", "parameters": {}} so', [("f", {"x": 1}), ("g", {})]),
        ("json", '{"type": "function", "name": "f", "parameters": {}}', [("f", {})]),
        ("json", '{"name": "Otto", "age": 3}', []),
        ("json", '{"answer": 3}', []),
        ("json", "{no json", []),
        ("json", "It is 3.", []),
        ("mistral", '[TOOL_CALLS] [{"name": "f", "arguments": {"x": 1}}, {"name": "g", "arguments": {}}]', [("f", {"x": 1}), ("g", {})]),
        ("mistral", '[TOOL_CALLS]f[ARGS]{"x": 1}[TOOL_CALLS]g[CALL_ID]abc123def[ARGS]{}', [("f", {"x": 1}), ("g", {})]),
        ("mistral", "It is 3.", []),
        ("xml", f"Hm. {XML}\n{XML}<|im_end|>", [("add", {"a": 7, "s": "7\nx"})] * 2),
        ("xml", "It is 3.", []),
    ],
)  # fmt: skip
def test_calls_are_read_in_the_order_in_which_they_were_written(style, text, calls):
    assert read(text, style) == calls


@pytest.mark.parametrize("style", ["hermes", "mistral", "xml"])
def test_a_mark_that_is_a_special_token_is_found_in_the_raw_answer(style):
    raw = {
        "hermes": '<tool_call>{"name": "add"}</tool_call>',
        "mistral": '[TOOL_CALLS]add{"a": 1}</s>',
        "xml": XML,
    }[style]
    assert [name for name, _ in read("add", style, raw)] == ["add"]


@pytest.mark.parametrize(
    ("style", "text"),
    [
        ("hermes", "<tool_call></tool_call>"),
        ("hermes", '<tool_call>{"name": 3, "arguments": {}}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": [1]}</tool_call>'),
        ("hermes", '<tool_call>{"name": "f", "arguments": {}} and more</tool_call>'),
        ("json", '{"name": "f", "parameters": {"x": }}'),
        ("mistral", "[TOOL_CALLS]"),
        ("mistral", "[TOOL_CALLS]f[ARGS]{oops"),
        ("xml", '<tool_call>{"name": "f"}</tool_call>'),
    ],
)
def test_what_only_looks_like_a_call_has_a_problem_and_no_name(style, text):
    [call] = read_calls(text, text, style, ADD)
    assert call.problem
    assert call.name == ""


def test_the_id_that_a_policy_gives_is_kept():
    text = '[TOOL_CALLS][{"name": "f", "arguments": {}, "id": "abc123def"}]'
    assert [one.id for one in read_calls(text, text, "mistral")] == ["abc123def"]


def test_halves_of_surrogate_pairs_are_replaced():
    assert read('<tool_call>{"name": "f", "arguments": {"x": "\\ud83d"}}</tool_call>', "hermes") == [
        ("f", {"x": "?"})
    ]


def test_a_tokenizers_own_response_template_decides():
    template = {
        "start_anchor": "<a>",
        "fields": {
            "content": {},
            "tool_calls": {
                "open": "<<", "close": ">>", "repeats": True, "content": "json",
                "transform": {"type": "function", "function": {"name": "{content.tool}", "arguments": "{content.with}"}},
            },
        },
    }  # fmt: skip
    text = 'Hm. <<{"tool": "f", "with": {"x": 1}}>>'
    [call] = read_calls(text, text, "response_template", ADD, template)
    assert (call.name, call.arguments) == ("f", {"x": 1})
    [call] = read_calls("<<{oops>>", "<<{oops>>", "response_template", ADD, template)
    assert "JSON" in call.problem
    assert read_calls("It is 3.", "It is 3.", "response_template", ADD, template) == []


@pytest.mark.parametrize("style", ["hermes", "json", "mistral", "xml"])
def test_a_long_answer_takes_no_time(style):
    bad = [
        "<tool_call>",
        "{",
        "[TOOL_CALLS]",
        " ",
        "<tool_call>\n<function=add>\n",
        "<parameter=a>",
        '{"name":',
        "\n",
    ]
    for piece in bad:
        text = piece * (200_000 // len(piece))
        started = time.process_time()
        read_calls(text, text, style, ADD)
        json.dumps(text)
        assert time.process_time() - started < 5, piece
