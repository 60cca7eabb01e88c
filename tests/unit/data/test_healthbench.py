"""HealthBench's rows become tasks unchanged; anything else is an error that names file, line and key."""

import json
import random

import pytest

from herl.data.healthbench import healthbench
from herl.errors import ConfigError, DataError
from tests.support.healthbench import ROWS, line, write_rows


def test_a_row_keeps_its_conversation_its_points_and_all_tags(tmp_path):
    data = healthbench(write_rows(tmp_path / "hb.jsonl"))
    task = data.heldout[0]
    assert (task.id, task.source, len(data.heldout)) == ("monday", "healthbench", 3)
    assert [dict(message) for message in task.messages] == ROWS[0]["prompt"]
    assert [(c.text, c.weight, c.undesirable, c.category) for c in task.rubric.criteria] == [
        ("Says rest.", 5.0, False, "axis:accuracy"), ("Says ice.", 3.0, False, "axis:completeness"),
        ("Says the.", -6.0, True, "axis:accuracy"),
    ]  # fmt: skip
    assert task.meta == {
        "example_tags": ["theme:hedging", "theme:global_health"],
        "rubric_tags": {"c1": ["level:example", "axis:accuracy"], "c2": ["axis:completeness"], "c3": ["axis:accuracy"]},
    }  # fmt: skip


def test_fewer_prompts_are_those_that_simple_evals_draws(tmp_path):
    rows = [line(str(number), *ROWS[0]["rubrics"]) for number in range(40)]
    data = healthbench(write_rows(tmp_path / "hb.jsonl", rows), max_prompts=7)
    drawn = random.Random(0).sample(rows, 7)
    assert [task.id for task in data.heldout] == [row["prompt_id"] for row in drawn]
    with pytest.raises(ConfigError, match=r"benchmark.data.max_prompts: expected at least 1, or null, got 0"):
        healthbench(str(tmp_path / "hb.jsonl"), max_prompts=0)


def changed(**changes):
    return json.loads(json.dumps(ROWS[1])) | changes


def criterion(**changes):
    return changed(rubrics=[{"criterion": "Is kind.", "points": 3, "tags": []} | changes])


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({k: v for k, v in ROWS[1].items() if k != "rubrics"},
         "rubrics: expected a list of objects with criterion, points and tags, got nothing"),
        (changed(prompt_id=7), "prompt_id: expected a text, got the number 7"),
        (changed(prompt="My knee hurts."), "prompt: expected a list of messages with role and content, got the text"),
        (changed(prompt=["hi"]), "prompt.0: expected a message with role and content, got the text 'hi'"),
        (changed(prompt=[{"role": "doctor", "content": "x"}]), "prompt.0.role: expected user, assistant or system, got the text 'doctor'"),
        (changed(prompt=[{"role": "assistant", "content": "x"}]), "prompt.0.role: expected the last message to be the user's"),
        (criterion(points="3"), "rubrics.0.points: expected a number, got the text '3'"),
        (criterion(criterion=""), "rubrics.0.criterion: expected a text that is not empty, got an empty text"),
        (criterion(tags="axis:accuracy"), "rubrics.0.tags: expected a list of texts, got the text"),
        (criterion(tags=["a", 1]), "rubrics.0.tags.1: expected a text, got the number 1"),
        (criterion(tags=["a", "a"]), "rubrics.0.tags: expected each tag once, got 'a' more than once"),
        (criterion(points=-3), "rubrics: expected positive points at least once, got none"),
        (changed(example_tags=None), "example_tags: expected a list of texts, got null"),
        (changed(example_tags=["t", "t"]), "example_tags: expected each tag once, got 't' more than once"),
        (criterion(criterion="half \ud83d"), "rubrics.0.criterion: expected Unicode text, got the lone surrogate"),
        (ROWS[0], r"prompt_id: expected a unique text, got 'monday', as in .*hb.jsonl:1"),
        ([1], "expected a JSON object with prompt_id, prompt, rubrics, example_tags, got the list"),
    ],
)  # fmt: skip
def test_another_row_is_an_error_that_names_file_line_and_key(tmp_path, row, message):
    path = write_rows(tmp_path / "hb.jsonl", [ROWS[0], row])
    with pytest.raises(DataError, match=rf"hb.jsonl:2: {message}"):
        healthbench(path)


def test_a_line_that_is_no_json_is_an_error_that_names_it(tmp_path):
    path = tmp_path / "hb.jsonl"
    path.write_text(json.dumps(ROWS[0]) + '\n{"prompt_id": \n')
    with pytest.raises(DataError, match="hb.jsonl:2"):
        healthbench(str(path))
