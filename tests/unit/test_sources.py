import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herl import DataError
from herl.data.sources import read_tasks

NATIVE = {
    "id": "a",
    "messages": [{"role": "user", "content": "Describe the otter."}],
    "rubric": [
        {"id": "food", "text": "Says that it eats fish.", "weight": 3, "check": {"kind": "contains"}},
        {"text": "Advertises.", "weight": -2, "undesirable": True},
    ],
    "meta": {"split": "train"},
}
IFEVAL = {
    "key": 1001,
    "prompt": "Write without commas.",
    "instruction_id_list": ["punctuation:no_comma", "keywords:existence", "keywords:existence"],
    "kwargs": [{}, {"keywords": ["a"], "num": None}, {"keywords": ["b"]}],
}


def write(tmp_path, *rows):
    path = tmp_path / "rows.jsonl"
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows))
    return path


def test_native_rows(tmp_path):
    plain = {"prompt": "Hi", "rubric": ["Is kind.", "Is short."]}
    first, second = read_tasks(write(tmp_path, NATIVE, "", plain))
    assert first.id == "a"
    assert [c.id for c in first.rubric.criteria] == ["food", "c2"]
    assert first.rubric.criteria[1].undesirable
    assert second.id == "3"  # its line
    assert second.request == "Hi"
    assert [c.weight for c in second.rubric.criteria] == [1.0, 1.0]


def test_ifeval_rows_become_one_criterion_per_instruction(tmp_path):
    [task] = read_tasks(write(tmp_path, IFEVAL))
    ids = [criterion.id for criterion in task.rubric.criteria]
    assert ids == ["punctuation:no_comma", "keywords:existence", "keywords:existence#2"]
    assert task.rubric.criteria[1].check == {
        "kind": "instruction",
        "instruction_id": "keywords:existence",
        "kwargs": {"keywords": ["a"]},
    }
    assert task.rubric.criteria[1].text == "keywords: existence (keywords: ['a'])"


def test_parquet(tmp_path):
    rows = [{"id": "a", "prompt": "Hi", "rubric": [{"text": "Is kind.", "weight": 2.0}]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    [task] = read_tasks(tmp_path / "rows.parquet")
    assert (task.id, task.rubric.criteria[0].weight) == ("a", 2.0)


def test_where_keeps_tasks_by_meta(tmp_path):
    path = write(tmp_path, NATIVE, NATIVE | {"id": "b", "meta": {"split": "heldout"}})
    assert [task.id for task in read_tasks(path, where={"split": "heldout"})] == ["b"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{broken", r"rows.jsonl:1: expected one JSON object per line, got '{broken'"),
        ("[1]", r"rows.jsonl:1: expected a JSON object, got list"),
        (NATIVE | {"rubric": []}, r"rows.jsonl:1: rubric: List should have at least 1 item"),
        (NATIVE | {"rubrik": 1}, r"rows.jsonl:1: rubrik: Extra inputs are not permitted, got 1"),
        (NATIVE | {"prompt": "x"}, r"either 'messages' or 'prompt'"),
        ({"prompt": "x"}, r"rows.jsonl:1: rubric: Field required, got nothing"),
        (
            NATIVE | {"messages": [{"role": "assistant", "content": "x"}]},
            r"expected the last role to be 'user', got 'assistant'",
        ),
        (
            NATIVE | {"rubric": [{"text": "x", "weight": "heavy"}]},
            r"rows.jsonl:1: rubric.0.weight: Input should be a valid number, .*got 'heavy'",
        ),
        (
            NATIVE | {"rubric": [{"text": "x"}, {"text": "Advertises.", "weight": -1}]},
            r"a negative weight needs 'undesirable'",
        ),
        (
            NATIVE | {"rubric": [{"text": "x", "weight": -1, "undesirable": True}]},
            r"rubric: expected at least one positive weight",
        ),
        (NATIVE | {"rubric": [{"id": "x", "text": "x"}] * 2}, r"rubric: expected ids to be unique"),
        (IFEVAL | {"kwargs": []}, r"kwargs: expected 3 entries, one per instruction, got 0"),
    ],
)
def test_a_bad_row_names_file_line_field_expected_and_got(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        read_tasks(write(tmp_path, row))


def test_missing_files_and_unknown_endings(tmp_path):
    with pytest.raises(DataError, match=r"expected a file of prompts, got none"):
        read_tasks(tmp_path / "none.jsonl")
    (tmp_path / "rows.txt").write_text("a")
    with pytest.raises(
        DataError, match=r"expected a .jsonl, .json, .csv, .parquet file or a folder, got '.txt'"
    ):
        read_tasks(tmp_path / "rows.txt")
