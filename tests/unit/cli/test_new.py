"""herl new writes its files into a new folder only."""

from pathlib import Path

import pytest

from herl.cli import new as module
from herl.cli.new import FILES, new
from herl.errors import ConfigError


def test_every_file_is_written_and_listed(tmp_path, capsys):
    new([str(tmp_path / "mine")])
    written = {p.relative_to(tmp_path / "mine").as_posix() for p in (tmp_path / "mine").rglob("*.*")}
    assert written == set(FILES)
    said = capsys.readouterr().out
    assert all(name in said for name in FILES)
    assets = Path(module.__file__).parents[1] / "assets" / "new"
    assert {p.relative_to(assets).as_posix() for p in assets.rglob("*.*") if p.suffix != ".pyc"} == set(FILES)


@pytest.mark.parametrize("there", ["a file", "a folder with a file"])
def test_nothing_that_exists_is_touched(tmp_path, there):
    place = tmp_path / "mine"
    if there == "a folder with a file":
        place.mkdir()
    own = place if there == "a file" else place / "own.txt"
    own.write_text("mine")
    with pytest.raises(ConfigError, match="expected a new or empty folder"):
        new([str(place)])
    assert own.read_text() == "mine"
    assert list(tmp_path.rglob("*.*")) == ([own] if own.suffix else [])


@pytest.mark.parametrize("given", [[], ["a", "b"]])
def test_one_folder_is_expected(given):
    with pytest.raises(ConfigError, match="expected the name of a folder"):
        new(given)


def test_an_empty_folder_may_exist(tmp_path):
    new([str(tmp_path)])
    assert (tmp_path / "rows.jsonl").is_file()
