"""An audit finds the fault that a judge was built with, and only that."""

import asyncio
import re
from dataclasses import asdict

import pytest
from rich.console import Console

from herl.config.early import check_early
from herl.errors import AuditLimit, ConfigError
from herl.evaluation.audit import JudgeAudit
from herl.evaluation.audit_report import tables
from herl.judge import Budget, JudgeRunner
from herl.judge.llm.reply_cache import ReplyCache
from herl.judge.mix import WeightedJudges
from herl.records.answers import RecordedAnswers
from herl.testing import FakeJudge, make_rollout, make_task
from herl.types import Judgement, Verdict
from tests.support.configuration import composed
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.llm_judges import made

TEXTS = ["fish", "river", "fish river", "none"]
PADDING = JudgeAudit().padding


def recorded(prompts=6, weights=None):
    tasks = [make_task(weights, id=f"t{n}", request=f"Describe {n}.") for n in range(prompts) for _ in TEXTS]
    rollouts = [
        make_rollout(text, id=f"a{n}-{k}", task_id=f"t{n}", group_id=f"t{n}", index=k)
        for n in range(prompts)
        for k, text in enumerate(TEXTS)
    ]
    return RecordedAnswers(tasks=tuple(tasks), rollouts=tuple(rollouts), left_out={})


def audited(judges, answers=None, human=None, budget=None, **settings):
    judges = judges if isinstance(judges, dict) else {"judge": judges}
    runner = JudgeRunner(next(iter(judges.values())), max_abstention=1.0, budget=budget)
    audit = JudgeAudit(**settings)
    return audit, audit.run(answers or recorded(), judges, runner.for_judge, human)


def flips(report):
    return {one.check: one for one in report.flips}


class FaultyJudge(FakeJudge):
    """Says of a verdict what its `fault` says, given its place, the answer, and how often it was asked."""

    def __init__(self, fault):
        super().__init__()
        self.fault = fault
        self.asked = 0

    async def judge(self, task, rollout):
        await asyncio.sleep(0)
        self.asked += 1
        verdicts = [
            Verdict(criterion_id=c.id, met=self.fault(place, c.id in rollout.text, rollout.text, self.asked))
            for place, c in enumerate(task.rubric.criteria)
        ]
        return self.verdict_sum(task, rollout, verdicts)


def test_a_judge_without_fault_never_flips():
    audit, report = audited(FakeJudge())
    assert (report.prompts, report.answers, len(report.raters)) == (6, 24, 1)
    assert [(f.check, f.flips.value, f.flips.count, f.reward_change.value) for f in report.flips] == [
        (check, 0.0, 48, 0.0) for check in ("retest", "position", "padding")
    ]
    assert (report.agreements, report.alpha, audit.beyond(report)) == ([], None, [])


FAULTS = [
    # fault, flips by check, gained by check
    (
        lambda place, met, text, asked: met ^ (asked > 24 and asked <= 48 and place == 0),
        (0.5, 0, 0),
        (12, 0, 0),
    ),
    (lambda place, met, text, asked: met or place == 0, (0, 0.5, 0), (0, 12, 0)),
    (lambda place, met, text, asked: met or text.endswith(PADDING), (0, 0, 0.5), (0, 0, 24)),
    (lambda place, met, text, asked: met and not text.endswith(PADDING), (0, 0, 0.5), (0, 0, 0)),
]


@pytest.mark.parametrize(("fault", "shares", "gained"), FAULTS)
def test_each_check_finds_its_fault_alone(fault, shares, gained):
    audit, report = audited(FaultyJudge(fault))
    found = flips(report)
    assert tuple(found[check].flips.value for check in audit.checks) == shares
    assert tuple(found[check].gained for check in audit.checks) == gained
    assert all(f.gained + f.lost == f.flips.value * f.flips.count for f in found.values())
    [beyond] = audit.beyond(report)
    [check] = [check for check, share in zip(audit.checks, shares, strict=True) if share]
    assert beyond == f"judge flips 0.500 of its verdicts (audit.max_{check}_flips=0.1)"
    assert audited(FaultyJudge(fault), **{f"max_{check}_flips": None})[0].beyond(report) == []


def test_an_abstention_is_shown_and_is_no_flip_and_no_disagreement():
    fault = lambda place, met, text, asked: None if place == 0 and asked > 24 else met  # noqa: E731
    _, report = audited(
        {"judge": FaultyJudge(fault), "other": FaultyJudge(lambda *x: None if x[0] else x[1])}
    )
    found = {(one.judge, one.check): one for one in report.flips}
    assert [(found["judge", c].flips.value, found["judge", c].abstained) for c in ("retest", "padding")] == [
        (0.0, 24)
    ] * 2
    assert (found["other", "retest"].flips.count, found["other", "retest"].abstained) == (24, 24)
    [pair] = report.agreements
    assert (pair.disagreement.value, pair.disagreement.count, pair.abstained) == (0.0, 24, 24)
    assert [(one.name, one.abstained, one.causes) for one in report.raters] == [
        ("judge", 0, {}),
        ("other", 24, {"cannot_tell": 24}),
    ]
    assert report.alpha.value == 1.0


def test_a_gain_is_what_the_author_wishes():
    fault = lambda place, met, text, asked: met or text.endswith(PADDING)  # noqa: E731
    _, report = audited(
        FaultyJudge(fault), recorded(weights={"fish": 1.0, "river": -1.0}), checks=["padding"]
    )
    assert (report.flips[0].gained, report.flips[0].lost) == (12, 12)


def test_judges_and_people_are_compared_and_what_they_differ_on_is_listed():
    strict = FaultyJudge(lambda place, met, text, asked: met and text != "fish")
    human = {("a0-0", "fish"): False, ("a0-1", "fish"): None, ("a0-2", "fish"): True}
    audit, report = audited({"judge": FakeJudge(), "strict": strict}, human=human, checks=[], min_kappa=0.9)
    rows = {(one.first, one.second): one for one in report.agreements}
    two = rows["judge", "strict"]
    assert (two.disagreement.value, two.disagreement.count) == (6 / 48, 48)
    assert two.kappa.value == pytest.approx(0.75)
    assert (rows["judge", "human"].disagreement.count, rows["judge", "human"].abstained) == (2, 1)
    assert rows["strict", "human"].disagreement.value == 0.0
    assert [(one.criterion, one.disagreement.value) for one in report.criteria] == [
        ("fish", 0.25),
        ("river", 0.0),
    ]
    assert len(report.examples) == 6
    assert report.examples[0]["met"] == {"judge": True, "strict": False, "human": False}
    assert "judge and strict agree by a kappa of 0.750 (audit.min_kappa=0.9)" in audit.beyond(report)


def test_the_judge_is_asked_again_past_its_cache_and_others_are_not(tmp_path):
    cache = ReplyCache(str(tmp_path / "replies.sqlite"))
    calls = []
    with FakeEndpoint() as endpoint:
        for _ in range(2):
            before = len(endpoint.sent)
            _, report = audited(WeightedJudges({"one": made(endpoint, cache=cache)}), recorded(2))
            calls.append(
                (len(endpoint.sent) - before, report.usage["calls"], report.usage.get("cache_hits", 0))
            )
    assert calls == [(32, 32, 0), (8, 8, 24)]


def test_an_offline_judge_cannot_be_asked_again(tmp_path):
    path = str(tmp_path / "replies.sqlite")
    with FakeEndpoint() as endpoint:
        audited(made(endpoint, cache=ReplyCache(path)), recorded(1))
        offline = made(endpoint, cache=ReplyCache(path, mode="offline"))
        sent = len(endpoint.sent)
        with pytest.raises(ConfigError, match="got offline"):
            audited(offline, recorded(1))
        _, report = audited(offline, recorded(1), checks=["position", "padding"])
        assert (len(endpoint.sent), len(report.flips)) == (sent, 2)


def test_a_judge_of_groups_is_compared_with_single_calls():
    with FakeEndpoint() as endpoint:
        judges = {"judge": made(endpoint), "group": made(endpoint, mode="group")}
        _, report = audited(judges, recorded(3), checks=["position"])
    assert [pair.disagreement.value for pair in report.agreements] == [0.0]
    assert report.usage["calls"] == 2 * (3 * 4 + 3)


def test_a_spent_budget_ends_an_audit_with_what_was_found():
    with FakeEndpoint() as endpoint:
        _, report = audited(made(endpoint), recorded(2), budget=Budget(calls=20))
    assert "budget is used up" in report.stopped
    assert [one.check for one in report.flips] == ["retest"]


@pytest.mark.parametrize("calls", [7, 20])
def test_what_was_spent_on_a_pass_that_did_not_end_is_counted(calls):
    with FakeEndpoint() as endpoint:
        _, report = audited(made(endpoint), recorded(2), budget=Budget(calls=calls))
        assert report.stopped
        assert report.usage["calls"] == len(endpoint.sent) == calls


class ScoreJudge(FakeJudge):
    """One score for the whole answer, which padding raises."""

    holistic = True

    async def judge(self, task, rollout):
        reward = 0.25 * rollout.text.endswith(PADDING)
        return Judgement(rollout_id=rollout.id, verdicts=(), reward=reward)


def test_a_judge_without_verdicts_is_compared_by_its_rewards():
    _, report = audited(ScoreJudge(), checks=["retest", "padding"])
    assert [(one.flips.value, one.reward_change.value) for one in report.flips] == [(None, 0.0), (None, 0.25)]
    console = Console(width=80)
    with console.capture() as shown:
        console.print(list(tables(report))[1])
    assert "reward by 0.250" in shown.get()


def test_the_tables_fit_a_terminal_of_80_columns():
    judges = {
        "judge": FakeJudge(),
        "x" * 40: FaultyJudge(lambda place, met, text, asked: met ^ (asked % 3 == 0)),
    }
    _, report = audited(judges, recorded(weights={"fish": 1.0, "r" * 60: 2.0}))
    console = Console(width=80)
    with console.capture() as shown:
        for table in tables(report):
            console.print(table)
    lines = shown.get().splitlines()
    assert max(map(len, lines)) <= 80
    rows = [line for line in lines if re.match(r"│.* -?\d\.\d{3} \[\S+, \S+\] │", line)]
    assert len(rows) == 2 + 6 + 1 + 2, "each number stands on one line"
    assert asdict(report)["flips"][0]["flips"]["count"] == 48


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"checks": ["order"]}, "audit.checks: expected some of retest, position, padding"),
        ({"max_prompts": 0}, "audit.max_prompts: expected at least 1"),
        ({"max_retest_flips": 10}, "audit.max_retest_flips: expected a share"),
        ({"padding": ""}, "audit.padding: expected a text"),
        ({"max_padding_flips": -1}, r"audit.max_padding_flips: expected a share in \[0, 1\]"),
    ],
)
def test_settings_that_cannot_work_are_errors(settings, message):
    with pytest.raises(ConfigError, match=message):
        JudgeAudit(**settings)


def test_the_verb_writes_what_it_finds_and_fails_beyond_a_limit(tmp_path, capsys):
    from herl.cli.audit import audit

    answers = tmp_path / "mine.jsonl"
    config = composed("audit", f"answers={answers}", "audit.max_prompts=4", output_dir=tmp_path)
    from herl.config.build import make

    tasks = make(config.data).heldout[:6]
    answers.write_text("".join(f'{{"task_id": "{t.id}", "text": "It eats fish."}}\n' for t in tasks))
    report = audit(config)
    assert (report.prompts, [one.flips.value for one in report.flips][:2]) == (4, [0.0, 0.0])
    assert "asked again" in capsys.readouterr().out
    assert '"beyond": []' in (tmp_path / "audit.json").read_text()
    config.audit.padding = " fish" * 40
    with pytest.raises(AuditLimit, match=r"judge flips .*audit.max_padding_flips=0.1.*audit.json"):
        audit(config)


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ([], "answers: expected a run's folder"),
        (["answers=nowhere"], "answers: expected recorded answers or verdicts, but there is no 'nowhere'"),
        (["answers=pyproject.toml", "human=nowhere"], "human: expected recorded"),
    ],
)
def test_missing_answers_are_an_error_before_torch_is_imported(overrides, message):
    with pytest.raises(ConfigError, match=message):
        check_early(composed("audit", *overrides), judges=False)
