"""What the README shows, works."""

import re
from pathlib import Path

README = (Path(__file__).parents[2] / "README.md").read_text()


def test_the_python_example_trains(tmp_path, monkeypatch):
    [code] = re.findall(r"```python\n(.*?)```", README, flags=re.DOTALL)
    monkeypatch.chdir(tmp_path)
    names = {}
    exec(code, names)
    module = names["module"]
    assert module.counts["optimizer_steps"] >= 8
    assert module.counts["revisions_sampled"] > 0
    assert module.policy is not None


def test_the_readme_is_short_and_its_files_exist():
    assert len(README.splitlines()) < 200
    root = Path(__file__).parents[2]
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if "://" not in target:
            assert (root / target).exists(), target


def test_the_tree_in_the_readme_is_the_tree():
    tree = README.split("<!-- tree -->")[1]
    rows = re.findall(r"^\| (`[^|]+`) \|", tree, flags=re.MULTILINE)
    listed = [name for row in rows for name in re.findall(r"`([\w/.]+)`", row)]
    package = Path(__file__).parents[2] / "herl"
    there = {path.name + "/" * path.is_dir() for path in package.iterdir() if path.name[0] not in "_."}
    assert set(listed) == there - {"conf/"}
