"""One function per verb, which builds from the configuration, runs, and returns a result.

fit              held-out reward -> training -> held-out reward -> summary.json, report.html
validate, test   held-out answers -> numbers with intervals -> summary.json, answers.jsonl
improve          answers -> revisions, round by round -> the same, and improve.png
export           checkpoint -> a folder that transformers and vLLM load, or a repository on the Hub
lint             prompts and rubrics -> lint.json
"""

from __future__ import annotations

import json
import logging
import sys
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

from omegaconf import DictConfig, OmegaConf
from rich.table import Table
from rich.text import Text

from herl.callbacks import BestCheckpoint
from herl.callbacks.stop_on_signal import requeue
from herl.cli.banner import show_banner
from herl.cli.summary import finish, log_hyperparameters, show_rows, show_scores
from herl.config.build import Run, build, check_checkpoint, make, quiet, resumed_from
from herl.config.check import check
from herl.data.lint import BAD_ROW, Finding, bad_rows, findings
from herl.data.prompts import typed_prompt
from herl.display.may_fail import may_fail
from herl.display.screen import Screen
from herl.dry_run.memory import killed_ranks, memory_of, warn_of_memory
from herl.dry_run.trial import dry_run
from herl.errors import BudgetSpent, ConfigError, DataError, JudgeStop, RunStopped
from herl.evaluation.evaluate import evaluate, rounds_picture, rounds_table, trajectory_records
from herl.evaluation.intervals import Row, prompt_rewards
from herl.evaluation.published import PublishedScores
from herl.files import write_whole
from herl.models.export import load_checkpoint, model_card, save_pretrained
from herl.models.push import check_push, push
from herl.prompt_text import visible
from herl.records.lines import read_records, write_lines
from herl.rollout.ahead import check_ahead, check_fresh
from herl.rollout.check_prompts import checked_prompt

logger = logging.getLogger(__name__)
BAD_ROWS_SHOWN = 10
"""Most bad rows that `herl lint` prints; all are in lint.json."""


def fit(config: DictConfig) -> dict[str, Any]:
    """Trains, writes summary.json in the run's folder, and returns the summary."""
    if config.dry_run:
        return dry_run(config)
    started = time.perf_counter()
    resume = resumed_from(config)
    run = build(config, gold=True)
    run.module.clock.began = started
    run.module.model.check_trainable()
    run.module.stages.check_training()
    corrected = not run.module.loss.needs_on_policy
    check_fresh(run.trainer, run.module.stages, corrected=corrected)
    check_ahead(run.trainer, run.data, run.module.stages, corrected=corrected)
    check_checkpoint("resume", resume, run)
    memory = memory_of(run)
    show_banner(config, run, memory)
    warn_of_memory(memory)
    with run.closing(), killed_ranks(run, memory):
        results: dict[str, Any] = {"heldout_reward_before": None}
        last = None
        try:
            reward, example = _heldout(run, resume)
            if resume is None:
                run.heldout.before = {"reward": reward, "example": example}
            results["heldout_reward_before"] = run.heldout.before.get("reward")
            run.trainer.fit(run.module, run.data, ckpt_path=resume, weights_only=True)
            results["heldout_reward_after"], last = _heldout(run)
            _keep_if_best(run)
        except (JudgeStop, RunStopped) as stop:
            results |= {"stopped": str(stop)} | _best(run)
            summary = finish(config, run, results | _measured(run))
            if isinstance(stop, BudgetSpent):  # requested by the user
                return summary
            if isinstance(stop, RunStopped) and run.trainer.is_global_zero:
                requeue(stop)
            raise
    results |= _best(run)
    first = run.heldout.before.get("example")
    if first and last:
        results["example"] = {"request": first[0], "before": first[1], "after": last[1]}
    summary = finish(config, run, results | _measured(run))
    with may_fail("the run's settings to its loggers"):
        log_hyperparameters(config, run, results)
    return summary


def validate(config: DictConfig) -> dict[str, Any]:
    """Evaluates a model or checkpoint on held-out prompts, writes the summary and returns it."""
    started = time.perf_counter()
    run, rows = _evaluated(config)
    run.module.clock.began = started
    scores = _published(config, run)
    if run.trainer.is_global_zero:
        show_rows(rows)
        show_scores(scores)
    return finish(config, run, _results(run, rows) | ({"benchmark": scores} if scores else {}))


test = validate
"""Like `validate`, on a benchmark."""


def improve(config: DictConfig) -> dict[str, Any]:
    """Lets a model revise its own answers, writes the summary and returns it."""
    started = time.perf_counter()
    config = deepcopy(config)
    config.module.validation_revisions = config.rounds  # overrides the run's setting
    data = None
    if config.prompt is not None:
        text = _standard_input() if config.prompt == "-" else str(config.prompt)
        data = typed_prompt(text, cast(list[Any], OmegaConf.to_container(config.rubric)))
    run, rows = _evaluated(config, data)
    run.module.clock.began = started
    rounds, trajectories = run.module.validation_revisions, run.heldout.trajectories
    if run.trainer.is_global_zero and rows:
        console = Screen()
        console.print(rounds_table(trajectories, rounds, rows))
        picture = Path(config.output_dir) / "improve.png"
        with may_fail(str(picture)):
            rounds_picture(rows, picture)
            console.print(f"Score by round: {picture}", soft_wrap=True)
        if data is not None:
            console.print(Text(visible(trajectories[0].best().rollout.transcript)))
    return finish(config, run, _results(run, rows))


def _standard_input() -> str:
    try:
        return sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"prompt: expected UTF-8 on standard input, got something else ({error})") from error


def _evaluated(config: DictConfig, data: Any = None) -> tuple[Run, list[Row]]:
    """Answers the held-out prompts, evaluates the answers and writes them."""
    checkpoint = _checkpoint(config)
    config, data = _benchmarked(config, data)
    run = build(config, data)
    run.module.trains = False
    judges = {str(name): make(node) for name, node in config.further_judges.items() if node is not None}
    check_checkpoint("checkpoint", checkpoint, run)
    memory = memory_of(run, trains=False)
    warn_of_memory(memory)
    with run.closing(), killed_ranks(run, memory), _kept_answers(config, run):
        rows = evaluate(
            run.validate(checkpoint),
            run.module.validation_revisions,
            judges,
            seed=config.seed,
            runner_of=run.module.stages.judge_runner.for_judge,
        )
    return run, rows


@contextmanager
def _kept_answers(config: DictConfig, run: Run) -> Iterator[None]:
    """Writes the answers when the block ends, even if none could be judged, or a further judge fails."""
    try:
        yield
    finally:
        if run.trainer.is_global_zero and run.heldout.trajectories:
            path = Path(config.output_dir) / "answers.jsonl"
            write_lines(path, trajectory_records(run.heldout.trajectories))


def _benchmarked(config: DictConfig, data: Any) -> tuple[DictConfig, Any]:
    """Replaces the configuration's prompts, judges and answering settings with the benchmark's."""
    benchmark = OmegaConf.select(config, "benchmark")
    if data is not None or benchmark is None or benchmark.data is None:
        return config, data
    check(config)
    config = deepcopy(config)
    config.module.judge = benchmark.judge
    config.module.validation_attempts = benchmark.attempts
    config.rollout.heldout = benchmark.heldout
    config.further_judges = {**benchmark.further_judges, **config.further_judges}
    return config, make(config.benchmark.data)


def _published(config: DictConfig, run: Run) -> dict[str, float]:
    """The benchmark's own numbers, of the plain answers; {} if it has none besides the rows."""
    node = OmegaConf.select(config, "benchmark.scores")
    if node is None:
        return {}
    scores: PublishedScores = make(node)
    return scores((one.task, one.best(0)) for one in run.heldout.trajectories)


def _results(run: Run, rows: list[Row]) -> dict[str, Any]:
    answers = [judged for one in run.heldout.trajectories for judged in one.answers]
    dropped = {
        name.removeprefix("heldout/"): int(n)
        for name, n in run.trainer.callback_metrics.items()
        if name.startswith("heldout/dropped_")
    }
    return {
        "heldout_reward": _reward(run),
        "heldout_answers": len(answers),
        "heldout_tokens": sum(len(judged.rollout.token_ids) for judged in answers),
        **dropped,  # prompts that were too long, which the results exclude
        "results": [asdict(row) for row in rows],
        "heldout": [
            prompt_rewards((one.task, one.best(number)) for one in run.heldout.trajectories)
            for number in sorted({row.revisions for row in rows})
        ],
    }


def _heldout(run: Run, checkpoint: str | None = None) -> tuple[float | None, tuple[str, str] | None]:
    """Held-out reward of the current policy, and the first request with its answer; None without prompts."""
    trajectories = run.validate(checkpoint)
    first = trajectories[0] if trajectories else None
    example = (first.task.request, first.answers[0].rollout.transcript) if first else None
    return _reward(run), example


def _reward(run: Run) -> float | None:
    """Held-out reward of the last validation; None without held-out prompts."""
    reward = run.trainer.callback_metrics.get("heldout/reward")
    return None if reward is None else float(reward)


def _measured(run: Run) -> dict[str, Any]:
    """The counts of a training run and the results of its validations."""
    gold = {"gold": run.gold.validations} if run.gold else {}
    return {**_counts(run), "validations": run.heldout.validations, **gold}


def _counts(run: Run) -> dict[str, int]:
    names = ("prompts", "answers_sampled", "revisions_sampled", "tokens_sampled", "optimizer_steps")
    counts = run.module.counts
    left_over = {"answers_left_over": counts["answers_left_over"]} if counts["answers_left_over"] else {}
    return {name: counts[name] for name in names} | left_over


def _keep_if_best(run: Run) -> None:
    """Considers the validation after training too, since a run may be best at its end."""
    for callback in run.trainer.checkpoint_callbacks:
        if isinstance(callback, BestCheckpoint):
            score = run.trainer.callback_metrics.get(str(callback.monitor))
            if score is not None:
                callback.keep_if_best(run.trainer, float(score))


def _best(run: Run) -> dict[str, Any]:
    """The best checkpoint, if there is one."""
    for callback in run.trainer.checkpoint_callbacks:
        if isinstance(callback, BestCheckpoint) and callback.best_model_score is not None:
            found = {"best_checkpoint": callback.best_model_path}
            best = float(callback.best_model_score)
            if callback.monitor == "heldout/reward":
                return {"heldout_reward_best": best, **found}
            return {"best_monitored": {str(callback.monitor): best}, **found}
    return {}


def _checkpoint(config: DictConfig) -> str | None:
    """The checkpoint that a verb starts from: the one given, or the best of the given run."""
    if config.checkpoint is not None:
        return str(config.checkpoint)
    if config.run is None:
        written = [
            path for level in ("*", "*/*") for path in Path("runs").glob(f"{level}/checkpoints/*.ckpt")
        ]
        found = max(written, key=lambda path: path.lstat().st_mtime, default=None)
        newest = f"; the newest run here is {found.parents[1]}" if found else ""
        logger.warning("run= and checkpoint= are not given: uses %s, untrained%s", config.model.path, newest)
        return None
    places = [Path(config.run) / "checkpoints" / name for name in ("best.ckpt", "last.ckpt")]
    for place in places:
        if place.exists():
            return str(place)
    raise ConfigError(
        f"run: expected a run's folder with {places[0]} or {places[1].name}, but it has neither"
    )


def export(config: DictConfig) -> Path:
    """Writes a checkpoint as a Hugging Face folder, uploads it if asked to, and returns the folder."""
    check(config)
    repository = None if config.push is None else str(config.push)
    if repository is not None:
        check_push(repository)
    quiet()
    checkpoint = _checkpoint(config)
    model = make(config.model)
    policy, tokenizer = model.load(), model.tokenizer()
    if checkpoint is not None:
        load_checkpoint(policy, checkpoint, model.lasting())
    folder = Path(config.out)
    before = _stamps(folder) if repository is not None else {}
    save_pretrained(policy, tokenizer, folder, adapter=config.adapter)
    card = model_card(model.path, checkpoint, adapter=config.adapter, repository=repository)
    write_whole(folder / "README.md", card)
    console = Screen()
    console.print(f"{checkpoint or model.path} -> {folder}", soft_wrap=True)
    if repository is not None:
        written = [name for name, stamp in _stamps(folder).items() if before.get(name) != stamp]
        address = push(folder, written, repository, private=config.private)
        console.print(f"{folder} -> {address}", soft_wrap=True)
    return folder


def _stamps(folder: Path) -> dict[str, int]:
    """When each file was written last: what else lies in a folder must not be uploaded with the model."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): path.stat().st_mtime_ns for path in files}


def lint(config: DictConfig) -> list[Finding]:
    """Checks prompts and rubrics, writes the findings to lint.json and returns them.

    Raises:
        DataError: the findings include errors.
    """
    check(config)
    quiet()
    if OmegaConf.select(config, "data.train.on_bad_row") is not None:
        config.data.train.on_bad_row = "skip"  # so that all bad rows are listed
    try:
        data: Any = make(config.data)
    except DataError:  # perhaps because no row is left
        _show_bad_rows(bad_rows(Path(config.output_dir)))
        raise
    model = make(config.model)
    tokenizer, environment = model.tokenizer(), make(config.environment)
    environment.prepare(tokenizer)
    vocab_size = model.vocab_size()
    found = findings(
        {"train": data.train, "heldout": data.heldout},
        prompt_tokens=lambda task: len(checked_prompt(task, tokenizer, vocab_size, environment)),
        max_prompt_tokens=make(config.rollout).within(model.max_tokens(), environment).max_prompt_tokens,
        records=read_records(Path(config.records), check=True) if config.records else (),
    )
    found = bad_rows(Path(config.output_dir)) + found
    listed = [asdict(finding) for finding in found]
    path = Path(config.output_dir) / "lint.json"
    write_whole(path, json.dumps(listed, indent=2) + "\n")
    _show_findings(found, len(data.train) + len(data.heldout), path)
    for line in data.mix.in_words() if getattr(data, "mix", None) else ():
        Screen().print(Text(visible(line)), soft_wrap=True)
    errors = sum(finding.level == "error" for finding in found)
    if errors:
        raise DataError(f"the data has {errors} errors: see {path}")
    return found


def _show_findings(found: list[Finding], prompts: int, path: Path) -> None:
    """Prints how often each kind of finding occurred, with an example."""
    table = Table("level", "kind", "times", "for example", title=f"herl lint: {prompts} prompts")
    kinds = Counter((finding.level, finding.kind) for finding in found)
    for (level, kind), times in sorted(kinds.items()):
        example = next(finding for finding in found if (finding.level, finding.kind) == (level, kind))
        shown = Text(visible(f"{example.where}: {example.detail}".partition("\n")[0][:200]))
        table.add_row(Text(level, style="red" if level == "error" else "yellow"), kind, str(times), shown)
    _show_bad_rows([finding for finding in found if finding.kind == BAD_ROW])
    console = Screen()
    console.print(table if found else f"herl lint: {prompts} prompts, no findings")
    console.print(f"All findings: {path}", soft_wrap=True)


def _show_bad_rows(found: list[Finding]) -> None:
    """Prints the first bad rows with their place, the field and the reason."""
    console = Screen()
    for finding in found[:BAD_ROWS_SHOWN]:
        console.print(Text(visible(f"{finding.where}: {finding.detail}")), soft_wrap=True)
    if len(found) > BAD_ROWS_SHOWN:
        console.print(f"and {len(found) - BAD_ROWS_SHOWN} more bad rows")
