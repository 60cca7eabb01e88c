"""Replies of judging models: what counts as verdicts and what does not."""

import json

import pytest

from herl import ConfigError, JudgeError
from herl.judge.llm.parse import ParsedVerdict, read_score, read_verdicts, without_thinking
from herl.judge.llm.scale import Scale

BINARY = Scale.of(None)
GOOD = {"verdicts": {"1": {"reason": "yes", "verdict": "met"}, "2": {"reason": "no", "verdict": "not met"}}}
EXPECTED = [ParsedVerdict(1.0, "yes"), ParsedVerdict(0.0, "no")]


@pytest.mark.parametrize(
    "reply",
    [
        json.dumps(GOOD),
        f"```json\n{json.dumps(GOOD, indent=2)}\n```",
        f"Here is my judgement:\n{json.dumps(GOOD)}\nI hope that helps {{sic}}.",
        f"<think>First {{'verdicts': maybe}} hmm {json.dumps({'verdicts': {}})}</think>{json.dumps(GOOD)}",
        json.dumps(GOOD) + "\n" + json.dumps(GOOD),
        json.dumps({"verdicts": [{"criterion": 2, "reason": "no", "verdict": "Not_met"},
                                 {"criterion": 1, "reason": "yes", "verdict": "MET."}]}),
        json.dumps({"verdicts": {"1": {"reason": "yes", "verdict": True}, "2": {"reason": "no", "verdict": 0}}}),
    ],
)  # fmt: skip
def test_verdicts_are_found_in_any_wrapping(reply):
    assert read_verdicts(reply, 2, BINARY) == EXPECTED


def test_a_quoted_verdict_or_a_thinking_tag_in_a_reason_is_only_text():
    reason = 'It offers {"verdicts": {"1": "met"}} and </think> and <think> by itself.'
    reply = json.dumps({"verdicts": {"1": {"reason": reason, "verdict": "not met"}}})
    assert read_verdicts(reply, 1, BINARY) == [ParsedVerdict(0.0, reason)]


def test_cannot_tell_is_no_verdict():
    for word in ("cannot tell", "Cannot-Tell", None, "unknown"):
        [said] = read_verdicts(json.dumps({"verdicts": {"1": {"verdict": word}}}), 1, BINARY)
        assert said.value is None


@pytest.mark.parametrize(
    ("reply", "cause", "message"),
    [
        ("", "malformed", "expected JSON with verdicts, got ''"),
        ("All criteria are met.", "malformed", "expected JSON"),
        (json.dumps(GOOD)[:-9], "malformed", "expected one complete JSON object with 'verdicts'"),
        ("<think>" + json.dumps(GOOD), "malformed", "expected JSON"),
        ("{" * 5000, "malformed", "expected JSON"),
        ('{"verdicts": ' * 3000, "malformed", "nested or partial ones"),
        ('{"verdicts": {"1": {"reason": "it says {"verdicts": {"1": {"verdict": "met"}}} but", "verdict": "not met"}}}',
         "malformed", "nested or partial ones"),
        (f'The answer says {json.dumps(GOOD)}, but {json.dumps(GOOD)[:40]}', "malformed", "nested or partial ones"),
        ('{"verdicts": {"1": "met", "1": "not met", "2": "met"}}', "wrong_count", "each criterion once"),
        (json.dumps(GOOD) + json.dumps({"verdicts": {"1": "met", "2": "met"}}), "malformed", "several that differ"),
        (json.dumps({"verdicts": "met"}), "malformed", "expected verdicts by number"),
        (json.dumps({"verdicts": {"first": "met", "2": "met"}}), "malformed", "the number of a criterion, got 'first'"),
        (json.dumps({"verdicts": {"1": {"verdict": "perhaps"}, "2": "met"}}), "malformed", "got 'perhaps'"),
        (json.dumps({"verdicts": {"1": {"reason": "x"}, "2": "met"}}), "malformed", "expected the key 'verdict'"),
        (json.dumps({"verdicts": {"1": "met"}}), "wrong_count", r"criteria 1 to 2, got \[1\]"),
        (json.dumps({"verdicts": {"1": "met", "2": "met", "3": "met"}}), "wrong_count", r"got \[1, 2, 3\]"),
        (json.dumps({"verdicts": {"1": "met", "3": "met"}}), "wrong_count", r"got \[1, 3\]"),
        (json.dumps({"verdicts": [{"criterion": 1, "verdict": "met"}] * 2}), "wrong_count", "each criterion once"),
        (json.dumps({"verdicts": {"1": "met", "01": "met"}}), "wrong_count", "each criterion once"),
    ],
)  # fmt: skip
def test_anything_else_is_no_judgement_and_may_be_asked_again(reply, cause, message):
    with pytest.raises(JudgeError, match=message) as error:
        read_verdicts(reply, 2, BINARY)
    assert error.value.cause == cause
    assert error.value.retry


@pytest.mark.parametrize(
    ("setting", "said", "value"),
    [
        ([0, 2], 1, 0.5),
        ([0, 2], "2", 1.0),
        ([1, 10], 1.0, 0.0),
        ([1, 10], 10, 1.0),
        ({"fully": 1.0, "partly": 0.25, "no": 0.0}, "Partly", 0.25),
        ([1, 10], "cannot tell", None),
        ([-1, 1], "-1", 0.0),
        ([-1, 1], 1, 1.0),
        ({"full": 1.0, "some": 0.5, "none": 0.0}, "none", 0.0),
    ],
)
def test_graded_scales_map_to_0_1(setting, said, value):
    assert Scale.of(setting).value(said) == value


@pytest.mark.parametrize(
    ("setting", "said"), [([0, 2], 3), ([0, 2], 1.5), ([0, 2], True), (None, "5"), ([1, 10], "met")]
)
def test_what_is_not_on_the_scale_is_malformed(setting, said):
    with pytest.raises(JudgeError, match="expected one of"):
        Scale.of(setting).value(said)


@pytest.mark.parametrize("setting", [[2, 0], [1], {"a": 1.0}, {"a": 1.0, "b": 2.0}])
def test_scales_that_are_none_are_refused(setting):
    with pytest.raises(ConfigError, match=r"judge.scale: expected"):
        Scale.of(setting)


def test_a_score_for_the_whole_answer():
    assert read_score('So: {"reason": "fine", "score": 7}', Scale.of([1, 10])) == ParsedVerdict(6 / 9, "fine")
    with pytest.raises(JudgeError, match="expected JSON"):
        read_score("7", Scale.of([1, 10]))


def test_thinking_is_stripped_also_where_it_never_ends():
    assert without_thinking("<think>a</think> b") == "b"
    assert without_thinking("a</think>b") == "b"
    assert without_thinking("<think>a") == ""
    assert without_thinking("no thoughts") == "no thoughts"
