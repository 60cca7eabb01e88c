import json
from pathlib import Path

import pytest

from herl import ConfigError, DataError
from herl.data import RubricDataModule
from herl.data.mix import heldout_mix, heldout_sources, train_mix, train_sources
from herl.data.sources import StoredTasks, read_tasks


def write(folder, name, count, **changes):
    rows = [{"prompt": f"{name} {n}", "rubric": ["Is short."]} | changes for n in range(count)]
    path = folder / f"{name}.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_tasks_know_their_source_and_rows_without_an_id_are_named_after_it(tmp_path):
    math, chat = write(tmp_path, "math", 2), write(tmp_path, "chat", 3, source="its own")
    tasks = train_mix({"math": {"path": math, "weight": 7}, "chat": {"path": chat, "weight": 3.5}})
    assert [task.id for task in tasks] == ["math:1", "math:2", "chat:1", "chat:2", "chat:3"]
    assert [task.source for task in tasks] == ["math"] * 2 + ["chat"] * 3
    assert [task.request for task in tasks[1:3]] == ["math 1", "chat 0"]
    assert tasks.weights == tasks[1:].weights == {"math": 7, "chat": 3.5}
    assert [task.source for task in read_tasks(chat)] == ["its own"] * 3, "alone, rows say their source"


def test_rows_of_large_files_are_the_same(tmp_path, monkeypatch):
    sources = {name: {"path": write(tmp_path, name, 3)} for name in ("math", "chat")}
    expected = list(train_mix(sources))
    monkeypatch.setattr("herl.data.rows.LARGE_BYTES", 0)
    tasks = train_mix(sources)
    assert all(isinstance(part, StoredTasks) for part in tasks._parts)
    assert list(tasks) == expected


def test_a_source_may_say_how_it_is_read_and_the_others_share_what_is_said_once(tmp_path):
    rows = [
        {"question": f"{n}", "rules": ["Is short."], "note": "x", "meta": {"split": "ab"[n % 2]}}
        for n in range(4)
    ]
    (tmp_path / "own.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    own = {
        "path": str(tmp_path / "own.jsonl"),
        "fields": {"prompt": "question", "rubric": "rules"},
        "ignore": ["note"],
        "where": {"split": "b"},
    }
    shared = [write(tmp_path, name, 1, extra_context="y") for name in ("one", "two")]
    sources = {"own": own} | {name: {"path": path} for name, path in zip("st", shared, strict=True)}
    tasks = train_mix(sources, ignore=["extra_context"])
    assert [task.request for task in tasks] == ["1", "3", "one 0", "two 0"]
    with pytest.raises(DataError, match="extra_context"):
        train_mix(sources)


def test_ids_that_clash_are_an_error_that_names_both_files(tmp_path):
    paths = [write(tmp_path, name, 1, id="same") for name in ("a", "b")]
    sources = {"first": {"path": paths[0]}, "second": {"path": paths[1]}}
    message = rf"heldout.sources: .* unique over all sources, got 'same' in both {paths[0]} \(first\) and "
    with pytest.raises(DataError, match=message + rf"{paths[1]} \(second\)"):
        heldout_mix(sources)
    with pytest.raises(DataError, match="data.train.sources: expected ids that are unique"):
        train_mix(sources)


def test_a_source_without_prompts_is_an_error(tmp_path):
    sources = {"a": {"path": write(tmp_path, "a", 2), "where": {"split": "none"}}}
    with pytest.raises(DataError, match=r"data.train.sources.a: expected at least one prompt, got none from"):
        train_mix(sources)


def test_bad_rows_of_each_source_have_a_file(tmp_path):
    paths = {name: write(tmp_path, name, 2) for name in "ab"}
    for path in paths.values():
        with open(path, "a") as file:
            file.write('{"prompt": "x", "rubric": "y"}\n')
    sources = {name: {"path": path} for name, path in paths.items()}
    quarantine = str(tmp_path / "bad_rows_train.jsonl")
    assert len(train_mix(sources, on_bad_row="skip", quarantine=quarantine)) == 4
    for name in paths:
        [line] = (tmp_path / f"bad_rows_train_{name}.jsonl").read_text().splitlines()
        assert json.loads(line)["place"].endswith(f"{name}.jsonl:3")
    assert not (tmp_path / "bad_rows_train.jsonl").exists()


@pytest.mark.parametrize(
    ("sources", "message"),
    [
        ({}, r"train.sources: expected at least one source, as in \{math: \{path: math.jsonl\}\}, got none"),
        ({"a": "a.jsonl"}, "train.sources.a: expected a mapping with a path, got 'a.jsonl'"),
        ({"a": {}}, "train.sources.a.path: expected a file, a folder, .*, got none"),
        ({"a": {"path": 3}}, "train.sources.a.path: expected a file, .*, got 3"),
        ({"a": {"path": "x", "weight": 0}}, "train.sources.a.weight: expected a number above 0, got 0"),
        ({"a": {"path": "x", "weight": -1.5}}, "train.sources.a.weight: .* above 0, got -1.5"),
        ({"a": {"path": "x", "weight": float("inf")}}, "train.sources.a.weight: .* above 0, got inf"),
        ({"a": {"path": "x", "weight": "7"}}, "train.sources.a.weight: .* above 0, got '7'"),
        ({"a": {"path": "x", "weight": True}}, "train.sources.a.weight: .* above 0, got True"),
        (
            {"a": {"path": "x", "weights": 7}},
            "a.weights: unknown key; expected one of path, .*mean 'weight'?",
        ),
        ({"a": {"path": "x", "ignore": "b"}}, "train.sources.a.ignore: expected a list of columns, got 'b'"),
        (
            {"a": {"path": "x", "fields": {"prompt": 3}}},
            "sources.a.fields: expected a mapping of herl's names",
        ),
        (
            {"a": {"path": "x", "negative_weight": "bad"}},
            "a.negative_weight: expected one of must_say, met_is",
        ),
        ({"a/b": {"path": "x"}}, "train.sources: expected names of letters, .* got 'a/b'"),
        (
            {"a": {"path": "x", "weight": 1}, "b": {"path": "y"}},
            "train.sources.b.weight: expected a number above 0, since other sources have a weight, got none",
        ),
    ],
)
def test_settings_of_sources_are_checked_before_a_file_is_read(sources, message):
    with pytest.raises(ConfigError, match=message):
        train_sources(sources)
    with pytest.raises(ConfigError, match=message):
        train_mix(sources)


def test_held_out_sources_have_no_weights(tmp_path):
    with pytest.raises(ConfigError, match="data.heldout.sources.a.weight: unknown key; expected one of path"):
        heldout_sources({"a": {"path": "x", "weight": 1}})
    assert heldout_mix(None) == ()
    found = heldout_mix({name: {"path": write(tmp_path, name, 2)} for name in "ab"})
    assert [(task.id, task.source) for task in found] == [
        ("a:1", "a"),
        ("a:2", "a"),
        ("b:1", "b"),
        ("b:2", "b"),
    ]


def test_without_weights_the_order_is_that_of_one_file(tmp_path):
    paths = [write(tmp_path, name, count) for name, count in (("a", 5), ("b", 3))]
    mixed = train_mix({"a": {"path": paths[0]}, "b": {"path": paths[1]}})
    (tmp_path / "whole.jsonl").write_text("".join(Path(path).read_text() for path in paths))
    whole = read_tasks(tmp_path / "whole.jsonl")
    orders = []
    for tasks in (mixed, whole):
        data = RubricDataModule(tasks, prompts_per_batch=3, seed=5)
        assert data.mix is None
        orders.append(
            [
                task.request
                for epoch in range(2)
                for n in range(3)
                for task in data.train_dataloader().batch(epoch, n)
            ]
        )
    assert orders[0] == orders[1]
