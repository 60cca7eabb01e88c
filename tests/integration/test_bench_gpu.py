"""`tools/bench/gpu` without a GPU: its sections at small sizes, and how failing sections are handled."""

import io
import json
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch

BENCH = Path(__file__).parents[2] / "tools" / "bench"
sys.path.insert(0, str(BENCH))

from gpu import driver, rows, sampling, updates  # noqa: E402
from gpu.bench import Bench, Figure, figures_of  # noqa: E402
from gpu.sections import Section  # noqa: E402


@pytest.mark.parametrize(
    ("function", "arguments", "figures"),
    [
        (rows.right, (), 40),
        (updates.lengths, (), 14),
        (updates.share, ("0.5b", ">= 0.4"), 4),
        (updates.share, ("7b, 8 layers", ">= 0.55"), 4),
        (updates.sharing, (), 4),
        (sampling.in_process, (), 1),
    ],
    ids=["rows", "lengths", "update", "update-untied", "sharing", "sampler"],
)
def test_a_section_measures_all_its_figures_in_small(function, arguments, figures, tmp_path):
    bench = Bench(section="one", device=torch.device("cpu"), scratch=tmp_path, tokenizer="tiny")
    function(bench, *arguments)
    found = figures_of(tmp_path, "one")
    assert len(found) == figures
    assert {one.verdict(on_gpu=False) for one in found} <= {"", "met", "not measured on a GPU"}


def test_the_leak_test_finds_a_leak(tmp_path, monkeypatch):
    """Lets answers see the answers before them."""
    bench = Bench(section="one", device=torch.device("cpu"), scratch=tmp_path, tokenizer="tiny")
    policy = rows._attentive(rows.load(bench, "0.5b, 2 layers"))
    assert rows._changed_by_neighbors(bench, policy, "shared", bf16=False) == 0

    def causal(query, key, value, contexts, *, scaling=None, **_):
        output = torch.nn.functional.scaled_dot_product_attention(
            query, key, value, is_causal=True, scale=scaling, enable_gqa=True
        )
        return output.transpose(1, 2)

    monkeypatch.setattr("herl.models.shared_attention.blockwise_attention", causal)
    assert rows._changed_by_neighbors(bench, policy, "shared", bf16=False) > 0


@pytest.mark.parametrize(
    ("value", "target", "verdict"),
    [
        (0.41, ">= 0.4", "met"),
        (0.39, ">= 0.4", "MISSED"),
        (1e-6, "<= 1e-5", "met"),
        (float("nan"), "<= 1e-5", "MISSED"),
        ("shared", "== shared", "met"),
        ("packed", "== shared", "MISSED"),
        (3, "== 0", "MISSED"),
        (3, "", ""),
    ],
)
def test_a_figure_says_whether_its_target_is_met(value, target, verdict):
    assert Figure(section="s", name="f", value=value, target=target).verdict(on_gpu=True) == verdict


FIGURE = "{'section': 'NAME', 'name': 'f', 'value': 2.0, 'unit': '', 'target': '', 'anywhere': False}"
FAKE = f"""
import json, sys, time
sys.stdin.readline()
open('SCRATCH/NAME.jsonl', 'w').write(json.dumps({FIGURE}) + chr(10))
"""


def test_no_section_stops_another_and_what_was_measured_stays(tmp_path, monkeypatch, capsys):
    ends = {"update-0.5b": "", "sampler": "raise ValueError('no luck')", "sharing": "time.sleep(600)"}
    sections = [Section(name=name, module="", function="", limit=1.5) for name in ends]
    sections.append(Section(name="late", module="", function="", limit=1.5))

    def command(section, options):
        assert options[-1] == str(tmp_path)
        code = FAKE.replace("NAME", section.name).replace("SCRATCH", str(tmp_path)) + ends.get(
            section.name, ""
        )
        return [sys.executable, "-c", code]

    monkeypatch.setattr(driver, "command", command)
    monkeypatch.setattr(driver, "CPU_PATIENCE", 1)
    monkeypatch.setattr(driver, "BESIDE", tuple(sections[:2]))
    monkeypatch.setattr(driver, "ALONE", tuple(sections[2:]))
    measurement = driver.Measurement(tmp_path, [], time.perf_counter() + 60, at_once=2)
    measurement.run(sections)
    assert measurement.states == {
        "update-0.5b": "done", "sampler": "failed", "sharing": "stopped after 2 s", "late": "done",
    }  # fmt: skip
    found = [(one.section, one.value) for one in measurement.figures()]
    assert sorted(found, key=str) == sorted(
        [(name, 2.0) for name in measurement.states]
        + [("sampler", "failed"), ("sharing", "stopped after 2 s")],
        key=str,
    )
    assert "no luck" in capsys.readouterr().out
    assert all(job.process.returncode is not None for job in measurement._jobs)
    over = driver.Measurement(tmp_path, [], time.perf_counter() - 1, at_once=2)
    over.run(sections)
    assert set(over.states.values()) == {"not started: the time was up"}


def test_herl_is_compared_with_trl_where_both_were_measured():
    ours = [Figure(section="step-herl", name="step", value=3.0)]
    theirs = [Figure(section="step-trl", name="step", value=6.0)]
    [ratio] = driver.ratios(ours + theirs)
    assert (ratio.value, ratio.verdict(on_gpu=True)) == (0.5, "met")
    assert driver.ratios(ours) == []


def test_a_section_whose_package_is_missing_says_so(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdin", io.StringIO("go\n"))
    bench = Bench(section="x", device=torch.device("cpu"), scratch=tmp_path, tokenizer="tiny")
    section = Section(name="x", module="nowhere", function="f", limit=1, needs=("not_there", "json"))
    assert driver.run_section(section, bench) == 0
    [figure] = figures_of(tmp_path, "x")
    assert figure.value == "not measured: no not_there (No module named 'not_there')"


@pytest.mark.nightly
def test_the_command_measures_the_sections_that_start_engines_and_steps(tmp_path):
    sections = ("step-herl", "step-trl")
    command = [sys.executable, str(BENCH / "gpu"), "--minutes", "20", "--out", str(tmp_path / "gpu.json")]
    done = subprocess.run([*command, "--only", *sections], capture_output=True, text=True, timeout=1500)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]
    assert driver.ON_A_CPU in done.stdout
    found = json.loads((tmp_path / "gpu.json").read_text())
    assert found["states"] == dict.fromkeys(sections, "done")
    assert "MISSED" not in {one["verdict"] for one in found["figures"]}
