import json
import os
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from herl import ConfigError, DataError
from herl.data import RubricDataModule
from herl.data.lint import bad_rows
from herl.data.sources import StoredTasks, read_tasks

NATIVE = {
    "id": "a",
    "messages": [{"role": "user", "content": "Describe the otter."}],
    "rubric": [
        {
            "id": "food",
            "text": "Says that it eats fish.",
            "weight": 3,
            "check": {"kind": "contains", "text": "fish"},
        },
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


def test_json_csv_and_folders(tmp_path):
    (tmp_path / "a.json").write_text(json.dumps([NATIVE, {"prompt": "Hi", "rubric": ["Is kind."]}]))
    (tmp_path / "b.csv").write_text(
        'id,question,rubric,reference\nx,"Describe\nit","[""Is kind."", ""Is short.""]",\n'
    )
    (tmp_path / "c.txt").write_text("not read")
    tasks = read_tasks(tmp_path)
    assert [task.id for task in tasks] == ["a", "a.json:2", "x"]
    assert tasks[2].request == "Describe\nit"
    assert [c.text for c in tasks[2].rubric.criteria] == ["Is kind.", "Is short."]
    assert tasks[2].reference is None


def test_large_files_stay_on_disk_and_read_the_same(tmp_path, monkeypatch):
    rows = [NATIVE | {"id": str(n), "meta": {"split": "train" if n % 3 else "heldout"}} for n in range(50)]
    path = write(tmp_path, *rows[:20], "", *rows[20:])
    pq.write_table(
        pa.Table.from_pylist([{"id": str(n), "prompt": "Hi", "rubric": ["Is kind."]} for n in range(9)]),
        tmp_path / "rows.parquet",
    )
    small = read_tasks(path, where={"split": "train"}), read_tasks(tmp_path / "rows.parquet")
    monkeypatch.setattr("herl.data.rows.LARGE_BYTES", 100)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    large = read_tasks(path, where={"split": "train"}), read_tasks(tmp_path / "rows.parquet")
    for expected, stored in zip(small, large, strict=True):
        assert isinstance(expected, list)
        assert isinstance(stored, StoredTasks)
        assert list(stored) == expected
        assert list(stored[2:5]) == expected[2:5]
        assert stored[len(stored) - 1] == expected[-1]
    with pytest.raises(IndexError):
        large[0][len(large[0])]
    module = RubricDataModule(large[0], large[0], prompts_per_batch=8)
    batches = list(module.train_dataloader())
    assert sorted(task.id for batch in batches for task in batch) == sorted(task.id for task in small[0])


def shrink(path):
    os.truncate(path, 10)


def grow(path):
    with path.open("ab") as file:
        file.write(b"\n")


def overwrite(path):
    before = path.stat()
    path.write_bytes(b"#" * before.st_size)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns + 1))


def replace(path):
    path.with_suffix(".new").write_bytes(path.read_bytes())
    os.replace(path.with_suffix(".new"), path)


@pytest.mark.parametrize(
    ("kind", "change"),
    [
        *(("jsonl", change) for change in (shrink, grow, overwrite, replace, os.remove)),
        ("parquet", grow), ("saved", shrink), ("mapped", shrink), ("mapped", os.remove),
    ],
)  # fmt: skip
def test_a_large_file_that_changes_is_an_error_at_the_next_row(tmp_path, monkeypatch, kind, change):
    monkeypatch.setattr("herl.data.rows.LARGE_BYTES", 100)
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"prompt": f"Q{n} {'x' * 5000}", "rubric": ["Is kind."]} for n in range(20)]
    path = write(tmp_path, *rows)
    if kind != "jsonl":
        pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
        path = tmp_path / "rows.parquet"
    if kind == "saved":
        path = tmp_path / "saved"
        datasets.Dataset.from_list(rows).save_to_disk(str(path))
    tasks = read_tasks(path)
    assert tasks[19].request == rows[19]["prompt"]
    if kind == "saved":
        [path] = path.glob("*.arrow")
    if kind == "mapped":  # what `datasets` made of a Parquet file: a page beyond its end would be SIGBUS
        path = next(Path(one["filename"]) for one in tasks._rows._table.cache_files)
    change(path)
    with pytest.raises(DataError, match=f"{path}: expected the file that the run began with"):
        tasks[19]


def test_data_sets_of_the_library_datasets(tmp_path, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    rows = [{"question": f"Q{n}", "rubric": [{"description": "Is kind.", "weight": 2}]} for n in range(3)]
    datasets.Dataset.from_list(rows).save_to_disk(str(tmp_path / "saved"))
    tasks = read_tasks(tmp_path / "saved")
    assert [task.request for task in tasks] == ["Q0", "Q1", "Q2"]
    asked = []

    def load_dataset(name, split):
        asked.append((name, split))
        return datasets.Dataset.from_list(rows)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    assert len(read_tasks("hf:owner/name:test")) == len(read_tasks("hf:owner/name")) == 3
    assert asked == [("owner/name", "test"), ("owner/name", "train")]


def test_bad_rows_may_go_into_quarantine(tmp_path, caplog):
    path = write(tmp_path, NATIVE, "{broken", NATIVE | {"id": "b", "rubric": []}, NATIVE | {"id": "c"})
    quarantine = tmp_path / "out" / "bad.jsonl"
    tasks = read_tasks(path, on_bad_row="skip", quarantine=str(quarantine))
    assert [task.id for task in tasks] == ["a", "c"]
    broken, empty = map(json.loads, quarantine.read_text().splitlines())
    assert broken["place"] == f"{path}:2"
    assert "got '{broken'" in broken["error"]
    assert (empty["place"], empty["row"]["id"]) == (f"{path}:3", "b")
    assert f"skipped 2 of 4 rows of {path}; see {quarantine}" in caplog.text
    with pytest.raises(ConfigError, match="needs quarantine"):
        read_tasks(path, on_bad_row="skip")


def test_a_saved_set_of_several_splits_asks_for_one_of_them(tmp_path):
    one = datasets.Dataset.from_list([{"prompt": "Hi", "rubric": ["Greets."]}])
    datasets.DatasetDict({"train": one, "test": one}).save_to_disk(tmp_path / "saved")
    with pytest.raises(DataError, match=r"got several splits: name one of them, as in .*saved/train"):
        read_tasks(tmp_path / "saved")
    assert len(read_tasks(tmp_path / "saved" / "train")) == 1


def test_only_the_first_rank_writes_skipped_rows_and_warns_of_them(tmp_path, caplog, monkeypatch):
    path = write(tmp_path, NATIVE, "{broken")
    quarantine = tmp_path / "bad_rows_train.jsonl"
    monkeypatch.setenv("RANK", "1")
    assert len(read_tasks(path, on_bad_row="skip", quarantine=str(quarantine))) == 1
    assert not quarantine.exists()
    assert "skipped" not in caplog.text
    monkeypatch.setenv("RANK", "0")
    read_tasks(path, on_bad_row="skip", quarantine=str(quarantine))
    assert quarantine.exists()


def test_skipped_rows_of_an_earlier_run_are_removed_once_none_is_bad(tmp_path):
    quarantine = tmp_path / "bad_rows_train.jsonl"
    read_tasks(write(tmp_path, NATIVE, "{broken"), on_bad_row="skip", quarantine=str(quarantine))
    assert len(bad_rows(tmp_path)) == 1
    read_tasks(write(tmp_path, NATIVE), on_bad_row="skip", quarantine=str(quarantine))
    assert bad_rows(tmp_path) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("a.json", "{broken", r"a.json: expected JSON, got something else"),
        ("a.json", '{"rows": 1}', r"a.json: expected a list of rows, got dict"),
        ("a.csv", "rubric\nHi\n", r"a.csv:2: rubric: expected a list of criteria, .*, got the text 'Hi'"),
        ("a.parquet", "no parquet", r"a.parquet: expected Parquet, got something else"),
        ("b.jsonl", "\xff\xfe", r"b.jsonl:1: expected one JSON object per line"),
    ],
)
def test_files_that_are_not_what_their_name_says(tmp_path, name, content, message):
    (tmp_path / name).write_bytes(content.encode("latin-1"))
    with pytest.raises(DataError, match=message):
        read_tasks(tmp_path / name)


def test_an_empty_folder_is_an_error(tmp_path):
    with pytest.raises(
        DataError, match="expected .jsonl, .json, .csv or .parquet files in the folder, got none"
    ):
        read_tasks(tmp_path)


def test_where_keeps_tasks_by_meta(tmp_path):
    path = write(tmp_path, NATIVE, NATIVE | {"id": "b", "meta": {"split": "heldout"}})
    assert [task.id for task in read_tasks(path, where={"split": "heldout"})] == ["b"]


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ("{broken", r"rows.jsonl:1: expected one JSON object per line, got '{broken'"),
        ("[1]", r"rows.jsonl:1: expected a JSON object, got list"),
        (
            NATIVE | {"rubric": []},
            r"rows.jsonl:1: rubric: expected a list of criteria, .*, got an empty list",
        ),
        (
            NATIVE | {"rubrik": 1},
            r"rows.jsonl:1: rubrik: unknown field 'rubrik'; expected one of id, messages, prompt, rubric, "
            r".*Did you mean 'rubric'\? .* move it into `meta`; to drop it, data.train.ignore=\[rubrik\]",
        ),
        (
            NATIVE | {"rubric": [{"text": "x", "score": 1}]},
            r"rows.jsonl:1: rubric.0.score: unknown field 'score'; expected one of text, id, weight, ",
        ),
        (NATIVE | {"rubric": [5]}, r"rubric.0: expected a text, or an object with a text, got the number 5"),
        (NATIVE | {"messages": "Hi"}, r"messages: expected a list of messages .*, got the text 'Hi'"),
        (NATIVE | {"messages": [{"role": "user"}]}, r"messages.0.content: expected a text, got n"),
        (NATIVE | {"id": [1]}, r"id: expected a text or a whole number, got the list \[1\]"),
        (NATIVE | {"meta": 3}, r"meta: expected an object, got the number 3"),
        (IFEVAL | {"kwargs": 3}, r"kwargs: expected a list with an object of arguments .*got the number 3"),
        (IFEVAL | {"instruction_id_list": [3]}, r"instruction_id_list.0: expected a text, got the number 3"),
        (NATIVE | {"prompt": "x"}, r"either 'messages' or 'prompt'"),
        ({"answer": "x"}, r"rows.jsonl:1: answer: unknown field 'answer'; expected one of id, messages, "),
        (
            NATIVE | {"messages": [{"role": "assistant", "content": "x"}]},
            r"expected the last role to be 'user', got 'assistant'",
        ),
        (
            NATIVE | {"rubric": [{"text": "x", "weight": "heavy"}]},
            r"rows.jsonl:1: rubric.0.weight: expected a number, got the text 'heavy'",
        ),
        (
            NATIVE | {"rubric": [{"text": "x"}, {"text": "Advertises.", "weight": -1}]},
            r"a negative weight needs 'undesirable'",
        ),
        (
            NATIVE | {"rubric": [{"text": "x", "weight": -1, "undesirable": True}]},
            r"rubric: expected at least one positive weight",
        ),
        (NATIVE | {"rubric": [{"id": "x", "text": "x"}] * 2}, r"rubric: expected unique ids"),
        (IFEVAL | {"kwargs": []}, r"kwargs: expected 3 entries, one per instruction, got 0"),
    ],
)
def test_a_bad_row_names_file_line_field_expected_and_got(tmp_path, row, message):
    with pytest.raises(DataError, match=message):
        read_tasks(write(tmp_path, row))


def test_an_error_shows_the_row_shortened(tmp_path):
    row = NATIVE | {
        "id": "long",
        "reference": "x" * 500,
        "rubric": [{"text": "y" * 500, "weight": "heavy"}] * 9,
    }
    with pytest.raises(DataError) as caught:
        read_tasks(write(tmp_path, row))
    [first, shown] = str(caught.value).splitlines()
    assert first.endswith("rubric.0.weight: expected a number, got the text 'heavy'")
    assert shown.startswith('  the row: {"id": "long", ')
    assert shown.endswith(" ...")
    assert f'"{"y" * 60}..."' in shown
    assert len(shown) < 330


def test_a_row_without_a_rubric_keeps_its_columns_for_the_judge(tmp_path):
    rows = [{"prompt": "6 x 7?", "solution": "42", "level": 1}, {"question": "Why?", "answer": None}]
    first, second = read_tasks(write(tmp_path, *rows))
    assert (first.request, first.rubric.criteria) == ("6 x 7?", ())
    assert first.meta == {"solution": "42", "level": 1}
    assert (second.request, second.meta) == ("Why?", {})
    [named] = read_tasks(write(tmp_path, {"q": "Hi", "meta": {"a": 1}, "b": 2}), fields={"prompt": "q"})
    assert (named.request, named.meta) == ("Hi", {"a": 1, "b": 2})
    with pytest.raises(DataError, match="rows.jsonl:1: context: expected a column that the prompt does not"):
        read_tasks(write(tmp_path, {"prompt": "Sum up.", "context": "A long text."}))


def test_missing_files_and_unknown_endings(tmp_path):
    with pytest.raises(DataError, match=r"expected a file of prompts, but there is no such file"):
        read_tasks(tmp_path / "none.jsonl")
    (tmp_path / "rows.txt").write_text("a")
    with pytest.raises(
        DataError, match=r"expected a .jsonl, .json, .csv, .parquet file or a folder, got '.txt'"
    ):
        read_tasks(tmp_path / "rows.txt")


def test_rows_without_ids_get_unique_ids_over_the_files_of_a_folder(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"prompt": "Hi", "rubric": ["x"]}\n' * 2)
    ids = ["a.jsonl:1", "a.jsonl:2", "b.jsonl:1", "b.jsonl:2"]
    assert [task.id for task in read_tasks(tmp_path)] == ids
    assert [task.id for task in read_tasks(tmp_path / "b.jsonl")] == ["1", "2"]


def test_an_id_that_two_rows_bring_names_both_places(tmp_path):
    for name in ("a", "b"):
        (tmp_path / f"{name}.jsonl").write_text('{"id": "x", "prompt": "Hi", "rubric": ["x"]}\n')
    with pytest.raises(DataError, match=r"b.jsonl:1: id: .* got 'x', the id of .*a.jsonl:1"):
        read_tasks(tmp_path)


def test_the_nulls_that_parquet_fills_in_are_missing(tmp_path, monkeypatch):
    checks = [{"kind": "contains", "text": "fish"}, {"kind": "x-json_schema", "schema": {"type": "object"}},
              {"kind": "x-json_schema", "schema": {"maxLength": 3}}]  # fmt: skip
    rows = [{"prompt": "q", "rubric": [{"text": str(n), "check": c} for n, c in enumerate(checks)]}]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "rows.parquet")
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    for limit in (10**9, 1):
        monkeypatch.setattr("herl.data.rows.LARGE_BYTES", limit)
        [task] = read_tasks(tmp_path / "rows.parquet")
        assert [c.check for c in task.rubric.criteria] == checks


def test_columns_that_are_not_used_are_listed_once(tmp_path, caplog):
    row = {"question": "Why?", "checklist": ["x"], "canary": "y", "rank": 1}
    tasks = read_tasks(write(tmp_path, row, row))
    assert tasks.unused_columns == ("canary", "rank")
    assert [one.getMessage() for one in caplog.records] == [
        f"{tmp_path / 'rows.jsonl'}: these columns are not used, except by a judge=function that names them: canary, rank"
    ]


@pytest.mark.parametrize(
    ("kwargs", "fault"),
    [
        ({}, "criterion 'keywords:frequency': kwargs.keyword: 'keywords:frequency' needs a text"),
        ({"keyword": None, "frequency": 1, "relation": "at least"}, "kwargs.keyword"),
        ({"keyword": "a", "frequency": "2", "relation": "at least"}, "kwargs.frequency"),
        ({"keyword": "a", "frequency": 2, "relation": "at most"}, "needs one of at least, less than"),
    ],
)
def test_arguments_of_verifiable_instructions_are_checked_when_rows_are_read(tmp_path, kwargs, fault):
    row = {"key": 1, "prompt": "p", "instruction_id_list": ["keywords:frequency"], "kwargs": [kwargs]}
    check = {"kind": "instruction", "instruction_id": "keywords:frequency", "kwargs": kwargs}
    native = {"prompt": "p", "rubric": [{"id": "keywords:frequency", "text": "t", "check": check}]}
    for bad in (row, native):
        with pytest.raises(DataError, match=r"rows\.jsonl:2: .*kwargs") as error:
            read_tasks(write(tmp_path, NATIVE, bad))
        assert fault in str(error.value)


def test_nulls_among_the_arguments_of_an_instruction_are_missing(tmp_path):
    kwargs = {"keyword": "a", "frequency": 2.0, "relation": "at least", "num_words": None}
    row = {"key": 1, "prompt": "p", "instruction_id_list": ["keywords:frequency"], "kwargs": [kwargs]}
    [task] = read_tasks(write(tmp_path, row))
    assert task.rubric.criteria[0].check["kwargs"] == {"keyword": "a", "frequency": 2, "relation": "at least"}


def test_a_csv_row_with_too_many_cells_or_a_column_twice_is_an_error(tmp_path):
    path = tmp_path / "rows.csv"
    path.write_text('rubrics,question\n"[""x.""]",Name two rivers, please.\n')
    with pytest.raises(
        DataError, match=r"rows.csv:2: expected a cell for each column, got 1 more: ' please.'"
    ):
        read_tasks(path)
    path.write_text('question,question,rubrics\na,b,"[""x.""]"\n')
    with pytest.raises(DataError, match="rows.csv:1: expected different column names, got 'question'"):
        read_tasks(path)


def test_a_key_twice_in_one_row_is_an_error(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"prompt": "p", "rubric": ["a"], "rubric": ["b"]}\n')
    with pytest.raises(DataError, match="rows.jsonl:1: .*'rubric' stands twice"):
        read_tasks(path)


def test_a_folder_skips_what_are_no_rows_and_says_so(tmp_path, caplog):
    row = json.dumps({"prompt": "p", "rubric": ["x"]})
    for name in ("a.jsonl", "b.JSONL", ".hidden.jsonl", "bad_rows_train.jsonl", "c.jsonl.gz"):
        (tmp_path / name).write_text(row + "\n")
    assert [task.id for task in read_tasks(tmp_path)] == ["a.jsonl:1", "b.JSONL:1"]
    assert "c.jsonl.gz" in caplog.text


def test_maps_of_parquet_are_objects(tmp_path):
    kind = pa.map_(pa.string(), pa.string())
    table = pa.table(
        {"prompt": ["p"], "rubric": [["x"]], "meta": pa.array([[("split", "train")]], type=kind)}
    )
    pq.write_table(table, tmp_path / "rows.parquet")
    assert read_tasks(tmp_path / "rows.parquet")[0].meta == {"split": "train"}
