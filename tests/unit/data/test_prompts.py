import json

import pytest

from herl.data.prompts import held_out, ifbench, muldimif, typed_prompt
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
    data = ifbench()
    assert len(data.heldout) == 294
    assert {task.source for task in data.heldout} == {"ifbench"}
    assert len(ifbench(max_prompts=48).heldout) == 48
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


MULDIMIF = {
    "id": "7", "conversations": [{"role": "user", "content": "Name two rivers. Use 3 words."}],
    "constraints": [["Length", "Words", "At most 3 words"]], "constraint_pattern": "Listing", "difficulty": "Level 1",
}  # fmt: skip


def test_a_row_of_muldimif_keeps_its_labels(tmp_path, caplog):
    (tmp_path / "test.json").write_text(json.dumps([MULDIMIF, MULDIMIF | {"id": "8"}]))
    tasks = muldimif(str(tmp_path / "test.json")).heldout
    assert [(task.id, task.source, dict(task.meta)) for task in tasks] == [
        (name, "muldimif", {"constraint_pattern": "Listing", "difficulty": "Level 1"}) for name in "78"
    ]
    assert [(c.category, c.title, c.text) for c in tasks[0].rubric.criteria] == [
        ("Length", "Words", "At most 3 words")
    ]
    assert not caplog.text
    assert len(muldimif(str(tmp_path / "test.json"), max_prompts=1).heldout) == 1


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ({"prompt": "x", "rubric": ["Is kind."]}, "constraints: expected a row of MulDimIF, got one without it"),
        ({k: v for k, v in MULDIMIF.items() if k != "difficulty"}, "difficulty: expected a row of MulDimIF"),
        (MULDIMIF | {"constraints": [["Length", "3 words"]]}, r"constraints: expected \[category, sub-category, text\]"),
    ],
)  # fmt: skip
def test_a_row_that_is_not_of_muldimif_is_an_error_that_names_it(tmp_path, row, message):
    (tmp_path / "test.json").write_text(json.dumps([MULDIMIF, row]))
    with pytest.raises(DataError, match=f"test.json.*2.*{message}"):
        muldimif(str(tmp_path / "test.json"))
