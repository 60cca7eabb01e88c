"""Compares algorithms over seeds at an equal budget of sampled answers or tokens, revisions included.

    tools/study/run algorithms=grpo,herl seeds=5
    tools/study/run experiment=smollm2_if algorithms=grpo,herl seeds=3 answers=4000 jobs=1
    tools/study/run study=tools/study/main.yaml

Each run is a process, with `jobs` of them side by side. It ends with the batch that exhausts its budget,
however many epochs that takes. Finished runs are kept, so the same command continues after an interruption.
Arms with `tries` are tuned first: each try runs on the tuning seeds with the tuning overrides, and the arm
uses the one with the best mean; an arm that is `tuned_as` another one uses the settings chosen for that.
Writes runs/, tuning/, study.json, table.md and curves.png to `out`.

A study file has the same keys as the command line, which takes precedence. See `Study` for all of them.
"""

from __future__ import annotations

import json
import re
import sys
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
from omegaconf import MISSING, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from report import Outcome, compare, draw, outcome, table
from runs import Job, run_all


@dataclass
class Arm:
    """One line of the table."""

    overrides: list[str] = field(default_factory=list)
    """Overrides of herl fit."""
    tries: list[list[str]] = field(default_factory=list)
    """Settings to choose among on the tuning seeds, as overrides; if empty, nothing is tuned."""
    tuned_as: str = ""
    """Another arm, whose chosen settings this one takes over."""


@dataclass
class Tuning:
    seeds: int = 2
    first_seed: int = 1000
    answers: int = 0
    """Sampled answers of each tuning run; 0 for the budget of the comparison."""
    overrides: list[str] = field(default_factory=list)
    """Overrides only for tuning runs, such as other held-out prompts."""
    tries: list[list[str]] = field(default_factory=list)
    """Tries of arms that define none."""


@dataclass
class Study:
    experiment: str = "embedded"
    answers: int = 8192
    """Sampled answers of each run."""
    tokens: int = 0
    """Sampled tokens of each run, for arms whose answers differ in length; 0 for a budget of answers."""
    algorithms: str = ""
    """Presets, separated by commas: arms without further overrides."""
    arms: dict[str, Arm] = field(default_factory=dict)
    baseline: str = ""
    """The arm that the others are compared with; the first one by default."""
    seeds: int = 5
    first_seed: int = 0
    overrides: list[str] = field(default_factory=list)
    """Overrides of every run."""
    machine: list[str] = field(default_factory=list)
    """Further overrides of every run, for the machine at hand, such as a precision or a sampler."""
    only: list[str] = field(default_factory=list)
    """Arms to run, as a list or separated by commas; the others are left out."""
    rows: str = ""
    """A module beside this file whose `write` first puts the prompts into the folder `rows` of `out`."""
    criteria: list[str] = field(default_factory=list)
    """Ids of criteria whose mean rate on held-out attempts gets a column, `chosen`."""
    guards: list[str] = field(default_factory=list)
    """Ids of criteria that an arm must not give up: each gets a column, and one for its change."""
    base_logprob: bool = False
    """Whether two columns tell how likely the untrained model finds the last held-out answers (`guards`)."""
    checkpoints: str = "all"
    """all | first: whether all finished runs keep their checkpoints, or only those of the first seed."""
    tuning: Tuning = field(default_factory=Tuning)
    jobs: int = 1
    """Runs side by side; each gets an equal share of the cores."""
    out: str = MISSING

    @property
    def unit(self) -> str:
        return "tokens" if self.tokens else "answers"

    @property
    def budget(self) -> int:
        """Sampled answers or tokens of each run."""
        return self.tokens or self.answers


def read(arguments: list[str]) -> Study:
    """Returns the study of a command line.

    Raises:
        SystemExit: names a key or value that is not valid.
    """
    try:
        given = OmegaConf.from_dotlist([given for given in arguments if not given.startswith("study=")])
        files = [given.partition("=")[2] for given in arguments if given.startswith("study=")]
        if isinstance(given.get("only"), str):
            given.only = [name.strip() for name in given.only.split(",") if name.strip()]
        named = {"out": f"runs/study_{Path(files[0]).stem}" if files else "runs/study"}
        merged = OmegaConf.merge(OmegaConf.structured(Study), named, *map(OmegaConf.load, files), given)
        study = OmegaConf.to_object(merged)
    except (OmegaConfBaseException, OSError) as error:
        raise SystemExit(f"tools/study/run: {error}") from None
    assert isinstance(study, Study)
    for name in filter(None, study.algorithms.split(",")):
        study.arms.setdefault(name, Arm(overrides=[f"algorithm={name}"]))
    _check_arms(study)
    study.baseline = study.baseline or next(iter(study.arms), "")
    if study.baseline not in study.arms or study.seeds < 1 or study.jobs < 1:
        raise SystemExit(
            "tools/study/run: expected algorithms= or arms, a baseline among them, and seeds and jobs of at "
            f"least 1, got arms {list(study.arms)}, baseline {study.baseline!r}, "
            f"seeds {study.seeds}, jobs {study.jobs}"
        )
    _check_tuning(study)
    return study


def _check_arms(study: Study) -> None:
    """Leaves out the arms that are not wanted."""
    wanted = study.only or list(study.arms)
    followed = {arm.tuned_as for arm in study.arms.values()} - {""}
    if unknown := sorted({*wanted, *followed} - set(study.arms)):
        raise SystemExit(f"tools/study/run: expected arms among {list(study.arms)}, got {unknown}")
    for name, arm in study.arms.items():
        if arm.tuned_as and (arm.tries or study.arms[arm.tuned_as].tuned_as):
            raise SystemExit(
                f"tools/study/run: arms.{name}.tuned_as: expected an arm without tries, and another "
                f"that is not tuned as another, got {arm.tuned_as!r}"
            )
    tuned = {name for name, arm in study.arms.items() if arm.tries or study.tuning.tries}
    if missing := sorted({study.arms[name].tuned_as for name in wanted} & tuned - set(wanted)):
        raise SystemExit(f"tools/study/run: only: expected also {missing}, as which another arm is tuned")
    study.arms = {name: arm for name, arm in study.arms.items() if name in wanted}
    for arm in study.arms.values():
        arm.tuned_as = arm.tuned_as if arm.tuned_as in tuned else ""
    if study.checkpoints not in ("all", "first"):
        raise SystemExit(f"tools/study/run: checkpoints: expected all or first, got {study.checkpoints!r}")
    if study.rows and not (Path(__file__).parent / f"{study.rows}.py").is_file():
        raise SystemExit(f"tools/study/run: rows: expected a module beside study.py, got {study.rows!r}")


def _check_tuning(study: Study) -> None:
    if not any(arm.tries for arm in study.arms.values()) and not study.tuning.tries:
        return
    if study.tokens and study.tuning.answers:
        raise SystemExit("tools/study/run: tuning.answers: expected none with a budget of tokens")
    tuning, compared = study.tuning, range(study.first_seed, study.first_seed + study.seeds)
    if tuning.seeds < 1 or set(range(tuning.first_seed, tuning.first_seed + tuning.seeds)) & set(compared):
        raise SystemExit(
            "tools/study/run: expected tuning.seeds of at least 1 and other seeds than the comparison's "
            f"{compared[0]} to {compared[-1]}, got {tuning.seeds} from {tuning.first_seed} on"
        )


def jobs_of(
    study: Study, folder: Path, overrides: list[str], seeds: range, answers: int | None = None
) -> list[Job]:
    size = answers or study.budget
    limit = [f"callbacks.answer_budget.answers={size}"]
    if study.tokens:
        limit = ["callbacks.answer_budget.answers=null", f"callbacks.answer_budget.tokens={size}"]
        limit.append("module.log_over=tokens_sampled")
    budget = [  # the budget alone ends a run
        f"experiment={study.experiment}",
        *limit,
        "trainer.max_epochs=-1",
        "trainer.max_steps=-1",
    ]
    shared = [*budget, "resume=auto", *study.overrides, *overrides, *study.machine]
    return [
        Job(
            folder / str(seed),
            [*shared, f"seed={seed}", f"hydra.run.dir='{folder / str(seed)}'"],
            keeps=study.checkpoints == "all" or seed == study.first_seed,
        )
        for seed in seeds
    ]


def tune(study: Study) -> dict[str, dict[str, Any]]:
    """Chooses among each arm's tries. Returns each arm's choice, and the results of all its tries."""
    seeds = range(study.tuning.first_seed, study.tuning.first_seed + study.tuning.seeds)
    answers = study.tuning.answers or study.budget
    tries = {
        name: [] if arm.tuned_as else arm.tries or study.tuning.tries for name, arm in study.arms.items()
    }
    jobs = {
        (name, number): jobs_of(
            study,
            Path(study.out) / "tuning" / name / folder_name(tried),
            [*study.arms[name].overrides, *tried, *study.tuning.overrides],
            seeds,
            answers,
        )
        for name in study.arms
        for number, tried in enumerate(tries[name])
    }
    run_all([job for several in jobs.values() for job in several], study.jobs)
    tuned: dict[str, dict[str, Any]] = {}
    for name in study.arms:
        finals = [
            [outcome(job.folder, answers).final for job in jobs[name, number]]
            for number in range(len(tries[name]))
        ]
        means = [float(np.mean(several)) for several in finals]
        chosen = tries[name][int(np.argmax(means))] if means else []
        tuned[name] = {
            "chosen": chosen,
            "tries": [
                {"overrides": tried, "finals": several, "mean": mean}
                for tried, several, mean in zip(tries[name], finals, means, strict=True)
            ],
        }
        if means:
            results = ", ".join(f"{' '.join(t)}: {m:.3f}" for t, m in zip(tries[name], means, strict=True))
            print(f"{name}: {results}")
    for name, arm in study.arms.items():
        if arm.tuned_as:
            tuned[name]["chosen"] = tuned[arm.tuned_as]["chosen"]
    return tuned


def folder_name(overrides: list[str]) -> str:
    return re.sub(r"[^\w.-]+", "_", ",".join(overrides)) or "as_is"


def main() -> None:
    study = read(sys.argv[1:])
    out = Path(study.out)
    out.mkdir(parents=True, exist_ok=True)
    if study.rows:
        import_module(study.rows).write(out / "rows")
    tuned = tune(study)
    seeds = range(study.first_seed, study.first_seed + study.seeds)
    jobs = {
        name: jobs_of(study, out / "runs" / name, [*arm.overrides, *tuned[name]["chosen"]], seeds)
        for name, arm in study.arms.items()
    }
    run_all([job for several in zip(*jobs.values(), strict=True) for job in several], study.jobs)
    found: dict[str, list[Outcome]] = {
        name: [outcome(job.folder, study.budget, study.criteria, study.guards) for job in several]
        for name, several in jobs.items()
    }
    if study.base_logprob:
        from guards import base_logprob  # imports torch

        for name, several in jobs.items():
            for job, one in zip(several, found[name], strict=True):
                one.extra.update(base_logprob(job.folder))
    compared = compare(found, study.baseline, study.budget)
    written = {
        "study": OmegaConf.to_container(OmegaConf.structured(study)),
        "tuning": tuned,
        "arms": compared,
    }
    (out / "study.json").write_text(json.dumps(written, indent=2) + "\n")
    (out / "table.md").write_text(table(compared, study.baseline, study.unit))
    draw(found, study.budget, out / "curves.png", study.unit)
    print((out / "table.md").read_text())
    print(f"{out}/study.json, table.md, curves.png; all curves: tensorboard --logdir {out}/runs")


if __name__ == "__main__":
    main()
