"""Tests of reward.py: python test_reward.py, or pytest. Add the answers that you have doubts about."""

from reward import reward

from herl.data.sources import read_tasks

TASK = read_tasks("rows.jsonl")[0]
GOOD = f"It is {TASK.meta['color']}."


def test_a_good_answer_meets_what_is_wanted() -> None:
    assert reward(TASK, GOOD) == {"color": True, "short": True, "praise": False}


def test_a_long_answer_is_not_short() -> None:
    assert not reward(TASK, f"{GOOD} " * 20)["short"]


def test_praise_is_found() -> None:
    assert reward(TASK, f"{GOOD} Animals are truly wonderful.")["praise"]


def test_each_row_has_a_verdict_for_each_criterion() -> None:
    for task in read_tasks("rows.jsonl"):
        assert set(reward(task, "")) == {criterion.id for criterion in task.rubric.criteria}


if __name__ == "__main__":
    for name, test in list(globals().items()):
        if name.startswith("test_"):
            test()
            print(f"passed: {name}")
