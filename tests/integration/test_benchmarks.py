"""Benchmarks from files of the user's, from the command to their published numbers."""

import json

import pytest

from herl.data.healthbench import healthbench
from herl.evaluation.published import healthbench_scores
from herl.testing import make_judged
from tests.support.fake_endpoint import FakeEndpoint
from tests.support.healthbench import ROWS, fake_grade, write_grader, write_rows
from tests.support.runs import herl_here, summary


def given(endpoint, folder, *more):
    return (
        "test", "model=tiny", "benchmark=healthbench", f"benchmark.judge.chat.base_url={endpoint.url}",
        "benchmark.judge.chat.model=fake", "benchmark.heldout.max_new_tokens=12",
        f"benchmark.data.path={folder}/hb.jsonl", f"benchmark.judge.grader={folder}/healthbench_eval.py",
        f"benchmark.judge.cache.path={folder}/replies.sqlite", f"hydra.run.dir={folder}/tested", *more,
    )  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    write_rows(tmp_path / "hb.jsonl")
    write_grader(tmp_path / "healthbench_eval.py")
    return tmp_path


def test_healthbench_is_graded_by_a_fake_model_and_scored_as_published(folder):
    with FakeEndpoint(reply=fake_grade) as endpoint:
        done = herl_here(*given(endpoint, folder), cwd=folder)
    assert done.returncode == 0, done.stderr[-3000:]
    assert "is not the published grader prompt of HealthBench" in done.stderr
    assert len(endpoint.sent) == sum(len(row["rubrics"]) for row in ROWS)
    facts = summary(folder / "tested")
    answers = [json.loads(line) for line in (folder / "tested" / "answers.jsonl").read_text().splitlines()]
    tasks = {task.id: task for task in healthbench(f"{folder}/hb.jsonl").heldout}
    pairs = [
        (task, make_judged(0.0, met={c.id: c.text[5:-1] in one["text"] for c in task.rubric.criteria}))
        for one in answers
        for task in [tasks[one["task_id"]]]
    ]
    assert facts["benchmark"] == healthbench_scores(pairs)
    assert {"overall_score:bootstrap_std", "theme:hedging", "axis:accuracy:n_samples"} <= set(
        facts["benchmark"]
    )
    assert "overall_score" in done.stdout
    assert (
        "clipped_reward" in {row["name"] for row in facts["results"]}
        or facts["benchmark"]["overall_score"] >= 0
    )


def test_a_malformed_file_ends_the_command_before_a_model_loads(folder):
    rows = [ROWS[0], {**ROWS[1], "rubrics": [{"criterion": "Is kind.", "points": "3", "tags": []}]}]
    write_rows(folder / "hb.jsonl", rows)
    with FakeEndpoint(reply=fake_grade) as endpoint:
        done = herl_here(*given(endpoint, folder), cwd=folder)
    assert done.returncode == 2
    assert "hb.jsonl:2: rubrics.0.points: expected a number, got the text '3'" in done.stderr
    assert not endpoint.sent


def test_what_healthbench_lacks_is_named(folder):
    done = herl_here("test", "model=tiny", "benchmark=healthbench", cwd=folder)
    assert done.returncode == 2
    assert "benchmark.data.path" in done.stderr


def test_muldimif_is_scored_by_checkers_that_a_function_calls(tmp_path):
    """As its guide says: the authors' checkers are the user's files."""
    rows = [
        {"id": str(number), "conversations": [{"role": "user", "content": f"Describe animal {number}."}],
         "constraints": [["Length", "Words", f"At most {most} words"], ["Content", "Keywords", "Must include e"]],
         "constraint_pattern": "Listing", "difficulty": "Level 2"}
        for number, most in enumerate((0, 1000))
    ]  # fmt: skip
    (tmp_path / "test.json").write_text(json.dumps(rows))
    (tmp_path / "checkers.py").write_text(
        "class Words:\n"
        "    def check(self, constraint, text):\n"
        "        return len(text.split()) <= int(constraint.split()[2])\n"
        "class Keywords:\n"
        "    def check(self, constraint, text):\n"
        "        return constraint.split()[-1] in text\n"
        "class_mapping = {'Length_Words': Words(), 'Content_Keywords': Keywords()}\n"
    )
    (tmp_path / "muldimif_check.py").write_text(
        "from checkers import class_mapping\n"
        "def check(task, text):\n"
        "    found = {c.id: class_mapping[f'{c.category}_{c.title}'] for c in task.rubric.criteria}\n"
        "    return {c.id: bool(found[c.id].check(c.text, text)) for c in task.rubric.criteria}\n"
    )
    done = herl_here(
        "test", "model=tiny", "benchmark=muldimif", "benchmark.data.path=test.json", "benchmark.heldout.max_new_tokens=12",
        "judge@benchmark.judge=function", "benchmark.judge.function=muldimif_check.check",
        f"hydra.run.dir={tmp_path}/tested", cwd=tmp_path, HERL_ALLOW_TARGETS="muldimif_check",
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-3000:]
    answers = [json.loads(line) for line in (tmp_path / "tested" / "answers.jsonl").read_text().splitlines()]
    keyword = sum("e" in one["text"] for one in answers) / 2
    scores = summary(tmp_path / "tested")["benchmark"]
    assert scores["constraint_type_second_list/Length_Words"] == 0.5
    assert scores["constraint_type_second_list/Content_Keywords"] == keyword
    assert scores["total_acc_micro"] == (0.5 + keyword) / 2
