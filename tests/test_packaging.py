"""The wheel contains everything that `herl fit` needs."""

import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    folder = tmp_path_factory.mktemp("wheel")
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(folder),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True)
    [path] = folder.glob("herl-*.whl")
    return path


@pytest.mark.integration
def test_wheel_carries_package_configuration_prompt_and_assets(wheel):
    names = set(zipfile.ZipFile(wheel).namelist())
    assert {
        "herl/cli/main.py",
        "herl/conf/fit.yaml",
        "herl/conf/algorithm/herl.yaml",
        "herl/hindsight/revision.txt",
        "herl/hindsight/rewrite.txt",
        "herl/assets/animals.jsonl",
        "herl/assets/new/experiment/mine.yaml",
        "herl/assets/new/rows.jsonl",
        "herl/assets/tiny/model.safetensors",
        "herl/assets/tiny_tools/model.safetensors",
        "herl/assets/catalog.csv",
        "herl/conf/README.md",
        "herl/data/README.md",
        "herl/assets/tiny/tokenizer.json",
    } <= names
    assert not any(name.startswith(("tests/", "tools/")) for name in names)


def test_assets_stay_under_4_megabytes():
    total = sum(path.stat().st_size for path in (ROOT / "herl" / "assets").rglob("*") if path.is_file())
    assert total < 4_000_000


@pytest.mark.integration
def test_an_installed_wheel_composes_its_configuration(wheel, tmp_path):
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(tmp_path)
    code = (
        f"import sys; sys.path.insert(0, {str(tmp_path)!r}); import herl; "
        f"assert herl.__file__.startswith({str(tmp_path)!r}); "
        "sys.argv = ['herl', 'fit', '--cfg', 'job']; from herl.cli.main import main; main()"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "herl.module.HerlModule" in done.stdout


def test_versions_that_must_not_be_installed_are_excluded():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    [lightning] = [line for line in project["dependencies"] if line.startswith("lightning")]
    assert "!=2.6.2" in lightning
    assert "!=2.6.3" in lightning
    assert {"vllm", "judge", "dev"} <= set(project["optional-dependencies"])
