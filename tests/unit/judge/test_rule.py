import asyncio
import time
import unicodedata
from dataclasses import replace

import pytest

from herl import Criterion, Rubric, Task
from herl.checks import patterns, read_check
from herl.errors import DataError
from herl.judge.rule import RuleJudge
from herl.testing import check_judge, make_rollout, make_task
from herl.types import ToolCall, Turn

ENDLESS = "(?:(a|aa)+)$"
DIALECT = "https://json-schema.org/draft/2020-12/schema"
DOUBLING = {
    "properties": {"a": {"$ref": "#/$defs/0"}},
    "$defs": {str(n): {"allOf": [{"$ref": f"#/$defs/{n + 1}"}] * 2} for n in range(30)} | {"30": {}},
}
LIST = {"type": "array", "items": {"$ref": "#/$defs/n"}}
BRANCHING = {"$ref": "#/$defs/n", "$defs": {"n": {"anyOf": [LIST | {"minItems": 2}, LIST | {"maxItems": 0}]}}}
TREE = {"$ref": "#/$defs/n", "$defs": {"n": {"properties": {"c": {"$ref": "#/$defs/n"}}}}}


def verdict(check, answer):
    rubric = Rubric(criteria=(Criterion(id="c", text="...", check=check),))
    task = Task(id="t", messages=({"role": "user", "content": "?"},), rubric=rubric)
    [found] = asyncio.run(RuleJudge().judge(task, make_rollout(answer))).verdicts
    return found


@pytest.mark.parametrize(("row", "answer"), [("NFC", "NFD"), ("NFD", "NFC")])
def test_the_way_of_writing_an_accent_makes_no_difference(row, answer):
    text, said = unicodedata.normalize(row, "\u00c9lan"), unicodedata.normalize(answer, "\u00e9lan")
    for kind in ("contains", "starts_with", "ends_with", "equals"):
        assert verdict({"kind": kind, "text": text}, said).met
    for kind in ("contains_any", "contains_all"):
        assert verdict({"kind": kind, "texts": [text]}, said).met
    assert not verdict({"kind": "excludes", "texts": [text]}, said).met


@pytest.mark.parametrize(
    ("check", "answer", "met"),
    [
        ({"kind": "contains", "text": "eats fish"}, "It EATS FISH.", True),
        ({"kind": "contains", "text": "eats fish"}, "It eats a fish.", False),
        ({"kind": "contains_any", "texts": ["a", "z"]}, "xyz", True),
        ({"kind": "contains_any", "texts": ["a", "b"]}, "xyz", False),
        ({"kind": "starts_with", "text": "hello"}, " Hello there", True),
        ({"kind": "starts_with", "text": "hello"}, "Oh hello", False),
        ({"kind": "regex", "pattern": r"\d{3}"}, "call 911", True),
        ({"kind": "regex", "pattern": r"^\d{3}$"}, "call 911", False),
        ({"kind": "max_words", "count": 2}, "two words", True),
        ({"kind": "max_words", "count": 2}, "now three words", False),
        ({"kind": "min_words", "count": 2}, "two words", True),
        ({"kind": "min_words", "count": 2}, "one", False),
        ({"kind": "numeric", "value": 1200}, "12 times 100 is 1,200.", True),
        ({"kind": "numeric", "value": 3, "tolerance": 0.1}, "about 3.2", True),
        ({"kind": "numeric", "value": 3}, "about 3.2", False),
        ({"kind": "numeric", "value": 3}, "no number", False),
        ({"kind": "contains_all", "texts": ["a", "b"]}, "ab", True),
        ({"kind": "contains_all", "texts": ["a", "b"]}, "a", False),
        ({"kind": "excludes", "texts": ["zoo", "visit"]}, "It swims.", True),
        ({"kind": "excludes", "texts": ["zoo", "visit"]}, "Visit us.", False),
        ({"kind": "ends_with", "text": "bye."}, "Good Bye. ", True),
        ({"kind": "ends_with", "text": "bye."}, "Bye. Now", False),
        ({"kind": "equals", "text": "Yes"}, " yes\n", True),
        ({"kind": "equals", "text": "Yes"}, "yes!", False),
        ({"kind": "count", "of": "words", "at_least": 2, "at_most": 3}, "a b c", True),
        ({"kind": "count", "of": "sentences", "at_most": 2}, "One. Two! Three?", False),
        ({"kind": "count", "of": "sentences", "at_least": 3, "at_most": 3}, "One. Two... Three", True),
        (
            {"kind": "count", "of": "sentences", "at_most": 1},
            "Dr. Smith paid 3.14 dollars, e.g. today.",
            True,
        ),
        (
            {"kind": "count", "of": "sentences", "at_least": 2, "at_most": 2},
            'He said "No." Then J. R. left.',
            True,
        ),
        ({"kind": "count", "of": "sentences", "at_least": 3, "at_most": 3}, "你好。你好吗？很好。", True),
        ({"kind": "count", "of": "lines", "at_least": 2, "at_most": 2}, "a\n\nb\n", True),
        ({"kind": "count", "of": "paragraphs", "at_least": 2, "at_most": 2}, "a\nb\n\nc", True),
        ({"kind": "count", "of": "characters", "at_most": 3}, "a\nbc", False),
        ({"kind": "count", "of": {"regex": r"\bfish\b"}, "at_least": 2}, "fish, fish", True),
        ({"kind": "json"}, '```json\n{"a": 1}\n```', True),
        ({"kind": "json"}, "{a: 1}", False),
        ({"kind": "json", "schema": {"type": "object", "required": ["a"]}}, '{"a": 1}', True),
        ({"kind": "json", "schema": {"type": "object", "required": ["a"]}}, '{"b": 1}', False),
    ],
)
def test_checks(check, answer, met):
    assert verdict(check, answer).met is met


@pytest.mark.parametrize(
    ("check", "why"),
    [
        (None, "the criterion has no check"),
        ({"kind": "contain", "text": "x"}, "Did you mean 'contains'?"),
        ({"kind": "contains", "word": "x"}, "check.word: a check of the kind 'contains' has the keys text"),
        ({"kind": "regex", "pattern": "("}, "check.pattern: expected a pattern, got the text '('"),
        ({"kind": "count", "of": "verses"}, "check.of: expected one of words"),
        ({"kind": "json", "schema": {"type": "thing"}}, "'thing' is not valid"),
        ({"kind": "python", "path": "os.getcwd"}, "expected a function from one of judge.python_modules"),
    ],
)
def test_a_check_that_cannot_be_applied_abstains_and_says_why(check, why):
    found = verdict(check, "anything")
    assert found.met is None
    assert why in found.reason


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        ({"kind": "json", "schema": {"properties": {"price": {"multipleOf": 0.01}}}}, '{"price": 1e400}'),
        ({"kind": "json"}, "[" * 100_000 + "]" * 100_000),
        ({"kind": "json"}, "9" * 4301),
        ({"kind": "json", "schema": TREE}, '{"c":' * 900 + "1" + "}" * 900),
    ],
    ids=["overflow", "deep", "digits", "recursion"],
)
@pytest.mark.parametrize("undesirable", [False, True])
def test_an_answer_that_breaks_its_check_fulfills_nothing(check, answer, undesirable):
    criterion = Criterion(id="c", text="...", check=check, undesirable=undesirable)
    task = Task(id="t", messages=({"role": "user", "content": "?"},), rubric=Rubric(criteria=(criterion,)))
    judgement = asyncio.run(RuleJudge().judge(task, make_rollout(answer)))
    assert criterion.good(judgement.verdicts[0].met) is False
    assert judgement.usage == {"check_errors": 1}


@pytest.mark.parametrize(
    ("check", "answer"),
    [
        ({"kind": "regex", "pattern": ENDLESS}, "a" * 60 + "b"),
        ({"kind": "count", "of": {"regex": ENDLESS}, "at_most": 3}, "a" * 60 + "b"),
        ({"kind": "exact_match", "texts": ["x"], "steps": [{"find": ENDLESS}]}, "a" * 60 + "b"),
        ({"kind": "json", "schema": {"pattern": ENDLESS}}, f'"{"a" * 60}b"'),
        (
            {"kind": "json", "schema": {"properties": {"a": {"$schema": DIALECT, "pattern": ENDLESS}}}},
            f'{{"a": "{"a" * 60}b"}}',
        ),
        ({"kind": "json", "schema": DOUBLING}, '{"a": 1}'),
        ({"kind": "json", "schema": BRANCHING}, "[" * 30 + "1" + "]" * 30),
    ],
    ids=["regex", "count", "exact_match", "pattern of a schema", "dialect", "doubling", "branching"],
)
def test_a_check_that_takes_too_long_abstains_with_the_cause_timeout(check, answer, monkeypatch, caplog):
    monkeypatch.setattr(patterns, "SECONDS", 0.05)
    criterion = Criterion(id="c", text="...", check=check)
    task = replace(make_task(), rubric=Rubric(criteria=(criterion,)))
    judgement = asyncio.run(RuleJudge().judge(task, make_rollout(answer)))
    assert judgement.verdicts[0].met is None
    assert judgement.usage == {"abstained_timeout": 1}
    assert "took longer than 0.05 s on this answer" in caplog.text


def test_a_match_that_does_not_end_leaves_the_loop_free(monkeypatch):
    monkeypatch.setattr(patterns, "SECONDS", 0.3)

    async def both():
        judging = asyncio.create_task(RuleJudge().judge(task, make_rollout("a" * 60 + "b")))
        await asyncio.sleep(0.05)
        free = not judging.done()
        judging.cancel()
        return free

    check = {"kind": "regex", "pattern": ENDLESS}
    rubric = Rubric(criteria=(Criterion(id="c", text="...", check=check),))
    task = Task(id="t", messages=({"role": "user", "content": "?"},), rubric=rubric)
    assert asyncio.run(both())


def test_a_function_that_lacks_a_package_abstains(tmp_path, monkeypatch):
    (tmp_path / "my_broken_check.py").write_text(
        "def rhymes(answer):\n    raise ImportError('no dictionary')\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    check = {"kind": "python", "path": "my_broken_check.rhymes"}
    rubric = Rubric(criteria=(Criterion(id="c", text="...", check=check),))
    task = Task(id="t", messages=({"role": "user", "content": "?"},), rubric=rubric)
    judge = RuleJudge(python_modules=["my_broken_check"])
    judgement = asyncio.run(judge.judge(task, make_rollout("a hat")))
    assert judgement.verdicts[0].met is None
    assert "no dictionary" in judgement.verdicts[0].reason
    assert judgement.usage == {"abstained_check": 1}


@pytest.mark.parametrize(
    ("answer", "met"),
    [
        ("NaN", False), ("[Infinity]", False), ('{"a": 1, "a": 2}', False), ("```json\n1\n```", True),
        ("```\n1\n```", True), ("```python\n1\n```", False), ("```" + "\n" * 50_000 + "x```", False),
    ],
)  # fmt: skip
def test_json_is_what_other_readers_agree_on(answer, met):
    assert verdict({"kind": "json"}, answer).met is met


@pytest.mark.parametrize("unit", ["words", "sentences", "lines", "paragraphs", "characters"])
def test_units_are_counted_in_linear_time(unit):
    started = time.perf_counter()
    for part in (" ", "\n", " \n", ".", "a", "a\n \n"):
        verdict({"kind": "count", "of": unit, "at_least": 1}, part * 60_000)
    assert time.perf_counter() - started < 3


def test_functions_are_called_from_allowed_modules_only(tmp_path, monkeypatch):
    (tmp_path / "my_checks.py").write_text(
        "def rhymes(answer, *, word):\n    return answer.endswith(word[-2:])\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    check = {"kind": "python", "path": "my_checks.rhymes", "word": "cat"}
    rubric = Rubric(criteria=(Criterion(id="c", text="...", check=check),))
    task = Task(id="t", messages=({"role": "user", "content": "?"},), rubric=rubric)

    def met(judge):
        return asyncio.run(judge.judge(task, make_rollout("a hat"))).verdicts[0].met

    assert met(RuleJudge(python_modules=["my_checks"])) is True
    assert met(RuleJudge(python_modules=["my_check"])) is None


@pytest.mark.parametrize("name", ["loads", "inner", "system", "halves"])
def test_only_functions_that_an_allowed_module_defines_are_called(name, tmp_path, monkeypatch):
    (tmp_path / "inner_of_checks.py").write_text("def inner(answer):\n    return True\n")
    (tmp_path / "importing_checks.py").write_text(
        "from functools import partial\nfrom json import loads\nfrom os import system\n"
        "from inner_of_checks import inner\nhalves = partial(inner)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    check = {"kind": "python", "path": f"importing_checks.{name}"}
    task = replace(make_task(), rubric=Rubric(criteria=(Criterion(id="a", text=".", check=check),)))
    [found] = asyncio.run(RuleJudge(python_modules=["importing_checks"]).judge(task, make_rollout())).verdicts
    assert found.met is None
    home = {"loads": "json", "inner": "inner_of_checks", "system": "posix", "halves": "functools"}[name]
    assert (
        f"'importing_checks.{name}' is not a function that importing_checks defines, but one of {home}"
        in found.reason
    )


def test_a_function_that_takes_too_long_abstains_with_the_cause_timeout(tmp_path, monkeypatch):
    (tmp_path / "slow_checks.py").write_text(
        "import re\n\n\ndef slow(answer):\n    return re.match('(a|aa)+$', answer)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    check = {"kind": "python", "path": "slow_checks.slow"}
    task = replace(make_task(), rubric=Rubric(criteria=(Criterion(id="a", text=".", check=check),)))
    judge = RuleJudge(python_modules=["slow_checks"], timeout_seconds=0.2)
    judgement = asyncio.run(judge.judge(task, make_rollout("a" * 70 + "b")))
    assert judgement.usage == {"abstained_timeout": 1}
    assert "slow_checks.slow took longer than judge.timeout_seconds=0.2" in judgement.verdicts[0].reason
    for other in (judge, RuleJudge(python_modules=["slow_checks"], timeout_seconds=None)):
        assert asyncio.run(other.judge(task, make_rollout("aa"))).verdicts[0].met is True
    judge.close()


def test_keeps_the_contract():
    assert check_judge(RuleJudge()).reward == pytest.approx(0.6)


def test_an_answer_gains_nothing_by_making_a_function_raise(tmp_path, monkeypatch, caplog):
    (tmp_path / "prices.py").write_text(
        "import json\n\n\ndef cheap(answer):\n    return json.loads(answer)['price'] < 10\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    good = Criterion(id="cheap", text="Is cheap.", check={"kind": "python", "path": "prices.cheap"})
    bad = replace(good, id="bad", undesirable=True)
    task = replace(make_task(), rubric=Rubric(criteria=(good, bad)))
    judge = RuleJudge(python_modules=["prices"])
    judgement = asyncio.run(judge.judge(task, make_rollout("no JSON")))
    assert [verdict.met for verdict in judgement.verdicts] == [False, True]
    assert judgement.usage["check_errors"] == 2
    assert "prices.cheap raised JSONDecodeError" in caplog.text
    assert asyncio.run(judge.judge(task, make_rollout('{"price": 9}'))).verdicts[0].met


def test_a_function_with_other_arguments_abstains(tmp_path, monkeypatch):
    (tmp_path / "lengths.py").write_text("def short(answer, limit):\n    return len(answer) < limit\n")
    monkeypatch.syspath_prepend(tmp_path)
    check = {"kind": "python", "path": "lengths.short"}
    task = replace(make_task(), rubric=Rubric(criteria=(Criterion(id="a", text="Is short.", check=check),)))
    [found] = asyncio.run(RuleJudge(python_modules=["lengths"]).judge(task, make_rollout("hi"))).verdicts
    assert found.met is None
    assert "missing a required argument: 'limit'" in found.reason


CALLS = (
    ToolCall(name="lookup", arguments={"animal": "otter", "deep": 1}),
    ToolCall(name="lookup", arguments={"animal": "fox"}),
    ToolCall(name="lookup", arguments={"animal": "otter"}, error="raised"),
    ToolCall(name="", error="malformed"),
)


def of_episode(check, **settings):
    turn = Turn(
        text="Let me see.", end=1, reply=({"role": "tool", "content": "fish"},), reply_ids=(), calls=CALLS
    )
    rubric = Rubric(criteria=(Criterion(id="c", text="...", check=check),))
    task = Task(id="t", messages=({"role": "user", "content": "?"},), rubric=rubric)
    judgement = asyncio.run(RuleJudge(**settings).judge(task, make_rollout("It is 42.", turns=[turn])))
    return judgement.verdicts[0].met


@pytest.mark.parametrize(
    ("changes", "met"),
    [
        ({}, True),
        ({"at_least": 2}, True),
        ({"at_least": 3}, False),
        ({"at_least": 3, "succeeds": False}, True),
        ({"at_most": 2}, True),
        ({"at_most": 1}, False),
        ({"at_least": 0, "at_most": 0}, False),
        ({"at_least": 0, "at_most": 0, "tool": "search"}, True),
        ({"tool": "search"}, False),
        ({"arguments": {"animal": "otter"}}, True),
        ({"arguments": {"animal": "otter"}, "at_least": 2}, False),
        ({"arguments": {"animal": "otter"}, "at_least": 2, "succeeds": False}, True),
        ({"arguments": {"animal": "otter", "deep": 1}}, True),
        ({"arguments": {"animal": "wolf"}}, False),
        ({"arguments": {"other": 1}}, False),
    ],
)
def test_a_criterion_may_be_about_calls(changes, met):
    assert of_episode({"kind": "calls_tool", "tool": "lookup"} | changes) is met


def test_an_argument_that_is_true_is_not_one():
    call = ToolCall(name="lookup", arguments={"whole": True, "page": 1, "of": [{"deep": True}]})
    rubric = {"kind": "calls_tool", "tool": "lookup"}
    for arguments, met in (
        ({"whole": True}, True),
        ({"whole": 1}, False),
        ({"page": True}, False),
        ({"page": 1.0}, True),
        ({"of": [{"deep": True}]}, True),
        ({"of": [{"deep": 1}]}, False),
    ):
        assert read_check(rubric | {"arguments": arguments}).called([call]) is met


def test_an_answer_in_one_turn_called_nothing():
    assert verdict({"kind": "calls_tool", "tool": "lookup"}, "lookup").met is False


@pytest.mark.parametrize(
    "changes",
    [
        {"tool": ""},
        {"at_least": 2, "at_most": 1},
        {"at_least": 0},
        {"arguments": 3},
        {"times": 2},
        {"succeeds": "yes"},
    ],
)
def test_a_check_of_calls_with_a_mistake_is_an_error(changes):
    with pytest.raises(DataError):
        read_check({"kind": "calls_tool", "tool": "lookup"} | changes)


@pytest.mark.parametrize(
    ("sees", "text", "met"),
    [
        ("answer", "fish", False),
        ("transcript", "fish", True),
        ("answer", "42", True),
        ("transcript", "see", True),
    ],
)
def test_checks_read_the_last_answer_or_the_transcript(sees, text, met):
    assert of_episode({"kind": "contains", "text": text}, sees=sees) is met
    assert of_episode({"kind": "contains", "text": "It is 42."}) is True
