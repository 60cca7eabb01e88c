"""HealthBench's grader over real HTTP, against a fake grading model with a fake prompt."""

import hashlib
import json
import logging

import pytest

from herl.data.healthbench import healthbench
from herl.errors import ConfigError
from herl.judge.llm.endpoint import Endpoint
from herl.judge.llm.healthbench import PUBLISHED, HealthBenchGrader, read_template
from herl.testing import make_rollout
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.healthbench import GRADER, fake_grade, write_grader, write_rows
from tests.support.llm_judges import QUICK, judge_all


@pytest.fixture
def tasks(tmp_path):
    return healthbench(write_rows(tmp_path / "hb.jsonl")).heldout


@pytest.fixture
def grader(tmp_path):
    return write_grader(tmp_path / "healthbench_eval.py")


def made(endpoint, grader, **settings):
    return HealthBenchGrader(Endpoint(endpoint.url, "m", structured="none"), grader, limits=QUICK, **settings)


def test_each_criterion_is_asked_about_alone_in_the_published_form(tasks, grader):
    with FakeEndpoint(reply=fake_grade) as endpoint:
        [judgement], _ = judge_all(made(endpoint, grader), ["rest the knee"], tasks[0])
    asked = {sent["messages"][1]["content"] for sent in endpoint.sent}
    conversation = (
        "user: My knee hurts.\n\nassistant: Since when?\n\nuser: Since monday.\n\nassistant: rest the knee"
    )
    assert asked == {
        f"A FAKE GRADER.\n{conversation}\n~~~\n{item}"
        for item in ("[5] Says rest.", "[3] Says ice.", "[-6] Says the.")
    }
    assert {sent["messages"][0]["content"] for sent in endpoint.sent} == {"You are a helpful assistant."}
    assert {(sent["temperature"], sent["max_tokens"]) for sent in endpoint.sent} == {(0.5, 2048)}
    assert not any("response_format" in sent for sent in endpoint.sent)
    assert [verdict.met for verdict in judgement.verdicts] == [True, False, True]
    assert judgement.verdicts[0].reason == "looked for rest"
    assert judgement.reward == pytest.approx((5 - 6) / 8), "below 0: one answer is not clipped"


def test_fields_that_an_answer_spells_stay_text(tasks, grader):
    with FakeEndpoint(reply=lambda asked: json.dumps({"criteria_met": True, "explanation": ""})) as endpoint:
        judge_all(made(endpoint, grader), ["<<rubric_item>> <|im_end|>"], tasks[1])
    for sent in endpoint.sent:
        assert "assistant: <<rubric_item>> <\u2060|im_end|>\n~~~\n[" in sent["messages"][1]["content"]


@pytest.mark.parametrize(
    "reply",
    ['{"explanation": "", "criteria_met": "true"}', '{"explanation": "met"}', "true", '{"criteria_met": true'],
)  # fmt: skip
def test_a_reply_without_a_plain_verdict_is_asked_for_again_and_abstains_at_last(tasks, grader, reply):
    with FakeEndpoint(reply=lambda asked: reply) as endpoint:
        [judgement], runner = judge_all(made(endpoint, grader), ["rest"], tasks[1])
    assert [verdict.met for verdict in judgement.verdicts] == [None, None]
    assert judgement.reward is None
    assert runner.causes() == {"malformed": 2}
    assert len(endpoint.sent) == 2 * QUICK.tries


def test_thinking_before_the_reply_is_left_out(tasks, grader):
    with FakeEndpoint(reply=lambda asked: f"<think>is it met? no</think>{fake_grade(asked)}") as endpoint:
        [judgement], _ = judge_all(made(endpoint, grader), ["a knee"], tasks[1])
    assert judgement.reward == 1.0


def test_an_answer_that_never_came_earns_no_points_and_loses_none(tasks, grader):
    with FakeEndpoint() as endpoint:
        judgement = made(endpoint, grader).unanswered(tasks[0], make_rollout("", has_answer=False))
    assert judgement.reward == 0.0
    assert not any(verdict.met for verdict in judgement.verdicts)


def test_another_prompt_than_the_published_one_is_said(grader, monkeypatch, caplog):
    assert len(PUBLISHED) == 64
    with FakeEndpoint() as endpoint, caplog.at_level(logging.WARNING):
        made(endpoint, grader)
        assert "is not the published grader prompt of HealthBench" in caplog.text
        caplog.clear()
        digest = hashlib.sha256(GRADER.encode()).hexdigest()
        monkeypatch.setattr("herl.judge.llm.healthbench.PUBLISHED", digest)
        made(endpoint, grader)
        assert not caplog.text


def test_the_prompt_is_read_from_the_published_file_or_from_text(tmp_path, grader):
    (tmp_path / "prompt.txt").write_text(f"{GRADER}\n")
    assert read_template(grader) == read_template(str(tmp_path / "prompt.txt")) == GRADER


@pytest.mark.parametrize(
    ("name", "text", "message"),
    [
        ("none.py", None, "cannot read '.*none.py'"),
        ("a.py", "x = 1\n", "assigns no text to GRADER_TEMPLATE"),
        ("a.py", "def (:\n", "cannot read"),
        ("a.py", "GRADER_TEMPLATE = open('x').name\n", "with <<conversation>> and <<rubric_item>> once each"),
        ("a.txt", "<<conversation>>", "with <<conversation>> and <<rubric_item>> once each"),
    ],
)
def test_a_file_without_the_prompt_is_an_error(tmp_path, name, text, message):
    if text is not None:
        (tmp_path / name).write_text(text)
    with pytest.raises(
        ConfigError, match=f"benchmark.judge.grader: expected healthbench_eval.py .*{message}"
    ):
        read_template(str(tmp_path / name))
