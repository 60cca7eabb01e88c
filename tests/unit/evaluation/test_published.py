"""Benchmarks' own numbers, against a naive computation of their published definition."""

import json
import random
import re
from collections import defaultdict

import numpy as np
import pytest

from herl.cli.summary import show_scores
from herl.data.healthbench import healthbench
from herl.data.prompts import muldimif
from herl.evaluation.published import healthbench_scores, muldimif_scores
from herl.testing import make_judged
from tests.support.healthbench import ROWS, item, line, write_rows


def naive(rows, graded):
    """HealthBench's definition in plain loops: {name: [score of each answer]}."""
    values = defaultdict(list)

    def score(pairs):
        possible = sum(points for points, _ in pairs if points > 0)
        return sum(points for points, met in pairs if met) / possible if possible else None

    for row, met in zip(rows, graded, strict=True):
        pairs = [(one["points"], good) for one, good in zip(row["rubrics"], met, strict=True)]
        values["overall_score"].append(score(pairs))
        for tag in row["example_tags"]:
            values[tag].append(score(pairs))
        for tag in {tag for one in row["rubrics"] for tag in one["tags"]}:
            own = [pair for pair, one in zip(pairs, row["rubrics"], strict=True) if tag in one["tags"]]
            if (found := score(own)) is not None:
                values[tag].append(found)
    return values


def judged(tasks, graded):
    for task, met in zip(tasks, graded, strict=True):
        yield task, make_judged(0.0, met=dict(zip((c.id for c in task.rubric.criteria), met, strict=True)))


def test_every_number_is_the_published_one(tmp_path):
    rng = random.Random(1)
    tags = ["axis:a", "axis:b", "level:c", "level:d"]
    rows = [
        line(
            f"p{number}", item("first", rng.randint(1, 10), *rng.sample(tags, 2)),
            *(item("x", rng.choice([-3, 2, 6]), *rng.sample(tags, 2)) for _ in range(rng.randint(1, 9))),
            tags=rng.sample(["theme:x", "theme:y", "physician_agreed_category:z"], rng.randint(0, 3)),
        )
        for number in range(60)
    ]  # fmt: skip
    graded = [[rng.random() < 0.4 for _ in row["rubrics"]] for row in rows]
    tasks = healthbench(write_rows(tmp_path / "hb.jsonl", rows)).heldout
    scores = healthbench_scores(judged(tasks, graded))
    expected = naive(rows, graded)
    assert {name for name in scores if not name.endswith(("n_samples", "bootstrap_std"))} == set(expected)
    for name, values in expected.items():
        assert scores[name] == pytest.approx(min(1.0, max(0.0, sum(values) / len(values))))
        assert scores[f"{name}:n_samples"] == len(values)
        means = [np.clip(np.mean(random.Random(i).choices(values, k=len(values))), 0, 1) for i in range(1500)]
        assert scores[f"{name}:bootstrap_std"] == pytest.approx(np.std(means), rel=0.12, abs=0.003)


def test_a_mean_below_zero_is_clipped_with_its_error(tmp_path):
    tasks = healthbench(write_rows(tmp_path / "hb.jsonl", [line("p", item("a", 1), item("b", -9))])).heldout
    scores = healthbench_scores(judged(tasks, [[True, True]]))
    assert scores["overall_score"] == scores["overall_score:bootstrap_std"] == 0.0


def test_abstentions_are_left_out_and_answers_without_verdicts_too(tmp_path):
    tasks = healthbench(write_rows(tmp_path / "hb.jsonl")).heldout
    scores = healthbench_scores(judged(tasks, [[True, None, False], [None, None], [True, True]]))
    assert scores["overall_score:n_samples"] == 2
    assert scores["overall_score"] == pytest.approx((5 / 5 + (7 - 9) / 7) / 2)
    assert healthbench_scores([]) == {}


def test_numbers_are_shown_with_their_errors(tmp_path, capsys):
    tasks = healthbench(write_rows(tmp_path / "hb.jsonl", ROWS[1:2])).heldout
    show_scores(healthbench_scores(judged(tasks, [[True, False]])) | {"total_acc": 0.5})
    shown = capsys.readouterr().out
    assert re.search(r"overall_score +│ 1.0000 ± 0.0000 +│ 1 ", shown)
    assert re.search(r"total_acc +│ 0.5000 +│  ", shown)
    show_scores({})
    assert not capsys.readouterr().out


PATTERNS, LEVELS = ("Listing", "Example"), ("Level 1", "Level 4")
CONSTRAINTS = {
    ("Content", "Keywords: Must include"): "Content_Keywords", ("Table", "Row limit"): "Format_Table",
    ("Length", "Words: At most"): "Length_Words", ("Words", "At most"): "Length_Words",
    ("Content", "Quotes"): "Content_Punctuation", ("Language", "English"): "Language_English",
    ("Format", "Markdown: Heading levels"): "Format_Markdown", ("XML", "Number of attributes"): "Format_XML",
}  # fmt: skip


def muldimif_rows(rng, count):
    for number in range(count):
        kinds = rng.sample(list(CONSTRAINTS), rng.randint(1, 5))
        yield {
            "id": str(number), "conversations": [{"role": "user", "content": f"Write {number}."}],
            "constraints": [[*kind, f"Is {kind[1]}."] for kind in kinds],
            "constraint_pattern": rng.choice(PATTERNS), "difficulty": rng.choice(LEVELS),
        }  # fmt: skip


def naive_muldimif(rows, graded):
    """MulDimIF's definition in plain loops."""
    numbers = {}

    def accuracies(name, of, chosen):
        some = [judges for row, judges in zip(rows, graded, strict=True) if row in chosen]
        numbers[name + of] = sum(sum(one) == len(one) for one in some) / len(some)
        numbers[f"{name}_macro{of}"] = sum(sum(one) / len(one) for one in some) / len(some)
        numbers[f"{name}_micro{of}"] = sum(map(sum, some)) / sum(map(len, some))

    accuracies("total_acc", "", rows)
    for pattern in PATTERNS:
        chosen = [row for row in rows if row["constraint_pattern"] == pattern]
        accuracies("constraint_extension_list", f"/{pattern}", chosen)
    for level in LEVELS:
        chosen = [row for row in rows if row["difficulty"] == level]
        accuracies("constraint_difficulty_list", f"/{level}", chosen)
    first, second = defaultdict(list), defaultdict(list)
    for row, judges in zip(rows, graded, strict=True):
        own = defaultdict(list)
        for (category, title, _), judge in zip(row["constraints"], judges, strict=True):
            kind = CONSTRAINTS[category, title]
            second[kind].append(judge)
            own[kind.split("_")[0]].append(judge)
        for kind, ones in own.items():
            first[kind].append(sum(ones) == len(ones))
    for name, table in (("constraint_type_list", first), ("constraint_type_second_list", second)):
        numbers |= {f"{name}/{kind}": sum(ones) / len(ones) for kind, ones in table.items()}
    return numbers


def test_every_number_of_muldimif_is_the_published_one(tmp_path):
    rng = random.Random(2)
    rows = list(muldimif_rows(rng, 50))
    (tmp_path / "test.json").write_text(json.dumps(rows))
    graded = [[rng.random() < 0.6 for _ in row["constraints"]] for row in rows]
    tasks = muldimif(str(tmp_path / "test.json")).heldout
    scores = muldimif_scores(judged(tasks, graded))
    assert scores == pytest.approx(naive_muldimif(rows, graded))
    assert list(scores)[:3] == ["total_acc", "total_acc_macro", "total_acc_micro"]


def test_an_answer_of_muldimif_with_an_abstention_does_not_fulfill_all(tmp_path):
    row = next(row for row in muldimif_rows(random.Random(0), 9) if len(row["constraints"]) == 3)
    (tmp_path / "test.json").write_text(json.dumps([row]))
    tasks = muldimif(str(tmp_path / "test.json")).heldout
    scores = muldimif_scores(judged(tasks, [[True, None, True]]))
    assert (scores["total_acc"], scores["total_acc_macro"], scores["total_acc_micro"]) == (0.0, 1.0, 1.0)
    assert muldimif_scores(judged(tasks, [[None, None, None]])) == {}
