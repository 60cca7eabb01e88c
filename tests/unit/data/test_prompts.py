import json

import pytest

from herl.data.prompts import held_out, ifbench, typed_prompt
from herl.errors import ConfigError, DataError


@pytest.fixture
def path(tmp_path):
    rows = [{"id": str(i), "prompt": f"Prompt {i}", "rubric": ["Is good."]} for i in range(10)]
    file = tmp_path / "rows.jsonl"
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(file)


@pytest.mark.parametrize(
    ("max_prompts", "ids"), [(None, "0123456789"), (3, "036"), (10, "0123456789"), (1, "0")]
)
def test_a_part_of_a_file_is_spread_over_it(path, max_prompts, ids):
    assert "".join(task.id for task in held_out(path, max_prompts=max_prompts).heldout) == ids


def test_no_prompts_at_all_is_an_error(path):
    with pytest.raises(ConfigError, match=r"data.max_prompts: expected at least 1, or null, got 0"):
        held_out(path, max_prompts=0)


def test_ifbench_has_its_294_prompts_and_says_where_it_comes_from(monkeypatch, tmp_path):
    data = ifbench(max_prompts=None)
    assert len(data.heldout) == 294
    assert {task.source for task in data.heldout} == {"ifbench"}
    assert len(ifbench().heldout) == 48
    monkeypatch.setenv("HERL_CACHE", str(tmp_path))
    with pytest.raises(ConfigError, match="run `herl fetch ifbench` first"):
        ifbench()


def test_a_prompt_is_typed_with_its_rubric_or_as_a_row():
    [task] = typed_prompt("  Name two rivers.\n", ["Names two rivers."]).heldout
    assert (task.request, [c.text for c in task.rubric.criteria]) == (
        "Name two rivers.",
        ["Names two rivers."],
    )
    row = {"prompt": "Say hi.", "rubric": [{"id": "hi", "text": "Says hi.", "weight": 2}]}
    [task] = typed_prompt(json.dumps(row)).heldout
    assert task.rubric.criteria[0].weight == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("Name two rivers.", "rubric: expected criteria to judge the answer by, got none"),
        ('{"prompt": ', "prompt: expected a prompt or a row as JSON, got invalid JSON"),
        ('{"prompt": "x"}', "prompt"),
        ("", "rubric: expected"),
    ],
)
def test_a_prompt_that_cannot_be_judged_is_an_error(text, message):
    with pytest.raises(DataError, match=message):
        typed_prompt(text)
