from dataclasses import replace

import numpy as np
import pytest

from herl.cli.summary import harmless, show_rows
from herl.data.hidden import hide
from herl.errors import JudgeError
from herl.evaluation.evaluate import evaluate, judge_again, rounds_picture, rounds_table
from herl.evaluation.intervals import evaluation_rows, find_row, prompt_rewards
from herl.judge import JudgeRunner
from herl.judge.rule import RuleJudge
from herl.rollout.improve import Trajectory
from herl.testing import FakeJudge, make_judged, make_rollout, make_task
from herl.types import Criterion, Judged, Rubric, Task


def judged(task, *met, id="group/0", text="fish"):
    verdicts = {c.id: m for c, m in zip(task.rubric.criteria, met, strict=True)}
    known = [m for m in met if m is not None]
    reward = sum(known) / len(known) if known else None
    return make_judged(reward, met=verdicts, rollout=make_rollout(text, id=id, task_id=task.id))


def test_means_are_over_answers_and_criteria_over_verdicts():
    task = make_task({"fish": 3.0, "river": 2.0})
    rows = evaluation_rows(
        [(task, judged(task, True, True)), (task, judged(task, True, None)), (task, judged(task, None, None))]
    )
    means = {row.name: (row.mean, row.count) for row in rows}
    assert means == {
        "reward": (1.0, 2),
        "perfect": (0.5, 2),  # an unknown verdict does not count as fulfilled
        "criteria_met": (1.0, 3),
        "abstained": (0.5, 6),
        "criterion/fish": (1.0, 2),
        "criterion/river": (1.0, 1),
    }


def test_what_an_undesirable_criterion_wishes_is_that_it_is_not_met():
    task = make_task({"fish": 3.0, "advert": -2.0})
    rows = evaluation_rows([(task, judged(task, True, False))])
    assert find_row(rows, "perfect").mean == 1.0
    assert find_row(rows, "criterion/advert").mean == 1.0


def test_of_very_many_criteria_those_that_most_prompts_have_are_measured():
    """Criteria whose ids differ between rows would each cost a column over all prompts."""
    own = 40
    pairs = []
    for number in range(own):
        names = [f"own{number}a", f"own{number}b", "shared", *(["often"] if number < 3 else [])]
        task = make_task(dict.fromkeys(names, 1.0), id=str(number))
        pairs.append((task, judged(task, *[True] * len(names))))
    rows = {row.name: row for row in evaluation_rows(pairs)}
    assert {name for name in rows if "/" in name} == {"criterion/shared", "criterion/often"}
    assert rows["criteria_met"].count == 3 * own + 3
    few = {row.name: row for row in evaluation_rows(pairs[:20])}
    assert len([name for name in few if "/" in name]) == 42
    common = [
        (task, judged(task, *[True] * 70))
        for task in (make_task({f"c{n:02d}": 1.0 for n in range(70)}, id=str(number)) for number in range(3))
    ]
    assert sum(row.name.startswith("criterion/") for row in evaluation_rows(common)) == 64


def test_categories_and_sources_have_rows_of_their_own():
    criteria = tuple(Criterion(id=str(i), text="x", category="AB"[i % 2]) for i in range(3))
    messages = ({"role": "user", "content": "x"},)
    task = Task(id="t", messages=messages, rubric=Rubric(criteria=criteria), source="bench")
    rows = evaluation_rows([(task, judged(task, True, False, False))])
    assert find_row(rows, "category/A").mean == 0.5
    assert find_row(rows, "category/B").mean == 0.0
    assert find_row(rows, "source/bench").mean == pytest.approx(1 / 3)


def test_intervals_are_those_of_a_naive_bootstrap_over_prompts():
    rng = np.random.default_rng(0)
    tasks = [make_task({"fish": 1.0}, id=f"t{i}") for i in range(40)]
    values = {task.id: rng.random(2) < 0.3 for task in tasks}  # two answers to a prompt are drawn together
    pairs = [
        (task, judged(task, bool(v), id=f"g/{k}")) for task in tasks for k, v in enumerate(values[task.id])
    ]
    row = find_row(evaluation_rows(pairs), "reward")
    naive = np.random.default_rng(1)
    means = []
    for _ in range(4000):
        drawn = [values[tasks[i].id] for i in naive.integers(0, len(tasks), len(tasks))]
        means.append(np.mean(drawn))
    assert (row.low, row.high) == pytest.approx(tuple(np.percentile(means, [2.5, 97.5])), abs=0.02)
    assert row.mean == pytest.approx(np.mean(list(values.values())))
    assert evaluation_rows(pairs) == evaluation_rows(pairs)


def test_nothing_to_evaluate_gives_no_rows(capsys):
    show_rows([])
    assert "nothing to report" in capsys.readouterr().out
    assert evaluation_rows([]) == []
    assert find_row([], "reward") is None


def trajectories():
    task = make_task({"fish": 3.0, "river": 2.0})
    draft = judged(task, True, False, text="fish")
    revision = judged(task, True, True, id="group/0/0", text="fish river")
    return [Trajectory(task=task, answers=(draft, revision)), Trajectory(task=task, answers=(revision,))]


def test_a_further_judge_judges_the_answers_that_the_first_chose():
    class FakeLoose(FakeJudge):
        async def judge(self, task, rollout):
            if rollout.text == "fish":
                raise JudgeError("will not")
            return await super().judge(task, rollout)

    rows = evaluate(trajectories(), 1, {"loose": FakeLoose()})
    by = {(row.judge, row.revisions): row.mean for row in rows if row.name == "reward"}
    assert by == {("", 0): 0.75, ("", 1): 1.0, ("loose", 0): 1.0, ("loose", 1): 1.0}
    assert find_row(rows, "abstained", 0, "loose").mean == 0.5


def test_a_further_judge_sees_hidden_criteria_too():
    task = hide(make_task({"fish": 1.0, "river": 1.0}), 0.999, seed=0)
    hidden = task.hidden[0].id
    answer = make_judged(1.0, rollout=make_rollout(hidden))
    rows = evaluate([Trajectory(task=task, answers=(answer,))], 0, {"rule": RuleJudge()})
    assert find_row(rows, f"criterion/{hidden}") is None
    assert find_row(rows, f"criterion/{hidden}", judge="rule").mean == 1.0
    assert find_row(rows, "reward", judge="rule").mean == 0.5


def test_judging_again_keeps_the_order():
    task = make_task({"fish": 3.0, "river": 2.0})
    rollouts = [
        make_rollout(text, id=f"group/{i}") for i, text in enumerate(("fish", "river", "", "fish river"))
    ]
    again = judge_again(JudgeRunner(RuleJudge()), [task] * 4, rollouts)
    assert all(isinstance(one, Judged) for one in again)
    assert [one.judgement.reward for one in again] == pytest.approx([0.6, 0.4, 0.0, 1.0])


def test_rounds_are_shown_as_a_table_and_as_a_picture(tmp_path):
    from rich.console import Console

    found = trajectories()
    rows = evaluate(found, 1)
    console = Console(width=100)
    with console.capture() as shown:
        console.print(rounds_table(found, 1, rows))
    cells = [line.split("│")[1:-1] for line in shown.get().splitlines() if "1.000" in line]
    assert [cell.strip() for cell in cells[-1]][-4:] == [
        "1",
        "1",
        "0",
        "2",
    ]  # revised, mended, broken, tokens
    rounds_picture(rows, tmp_path / "improve.png")
    assert (tmp_path / "improve.png").read_bytes()[:4] == b"\x89PNG"


def test_the_mean_is_clipped_and_no_answer():
    """HealthBench: answers of 1.0 and -0.8 score 0.1 together, not the 0.5 of clipped answers."""
    rows = evaluation_rows(_scored(1.0, -0.8))
    assert find_row(rows, "reward").mean == find_row(rows, "clipped_reward").mean == pytest.approx(0.1)
    assert find_row(rows, "clipped_reward").low == 0.0
    assert find_row(evaluation_rows(_scored(0.2, -0.8)), "clipped_reward").mean == 0.0
    assert find_row(evaluation_rows(_scored(0.2, 0.8)), "clipped_reward") is None


def _scored(*rewards):
    return [
        (replace(make_task({"fish": 1.0}), id=str(number)), make_judged(reward))
        for number, reward in enumerate(rewards)
    ]


def test_rewards_by_prompt_are_means_over_its_attempts_in_the_order_of_prompts():
    tasks = [make_task({"fish": 1.0}, id=name) for name in ("b", "a", "c")]
    pairs = [(task, judged(task, met)) for task in tasks[:2] for met in (True, False)]
    pairs += [(tasks[1], judged(tasks[1], True)), (tasks[2], judged(tasks[2], None))]
    kept = prompt_rewards(pairs)
    assert kept["rewards"] == [0.5, pytest.approx(2 / 3, abs=1e-6), None]
    assert kept["fingerprint"] == prompt_rewards(pairs[1:])["fingerprint"]
    assert kept["fingerprint"] != prompt_rewards(pairs[:-1])["fingerprint"]
    for changed in ({"id": "z"}, {"weight": 9.0}, {"text": "Says nothing."}):  # another rubric
        rubric = Rubric(criteria=(replace(tasks[0].rubric.criteria[0], **changed),))
        other = [(replace(task, rubric=rubric), answer) for task, answer in pairs]
        assert prompt_rewards(other)["fingerprint"] != kept["fingerprint"]


def test_rewards_of_very_many_prompts_are_not_listed(monkeypatch):
    monkeypatch.setattr("herl.evaluation.intervals.MAX_PROMPT_REWARDS", 1)
    tasks = [make_task({"fish": 1.0}, id=name) for name in "ab"]
    assert set(prompt_rewards((task, judged(task, True)) for task in tasks)) == {"fingerprint"}


@pytest.mark.parametrize(
    ("key", "value", "shown"),
    [("optimizer.lr", 0.1, 0.1), ("judge.chat.api_key", "abc", "(hidden)"), ("seed", 3, 3)],
)
def test_trackers_get_no_secret(key, value, shown):
    assert harmless(key, value) == shown
