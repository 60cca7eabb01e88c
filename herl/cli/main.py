"""The command line: a verb selects a primary configuration and the command that runs it.

The only file that uses hydra.main. Heavy imports are deferred until a command runs, so `herl --help` is
instant.
"""

from __future__ import annotations

import os
import select
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from importlib import import_module
from importlib.metadata import version
from io import StringIO
from pathlib import Path
from signal import SIGINT, SIGPIPE
from typing import TYPE_CHECKING, NoReturn

from herl.cli.openmp import spin_briefly
from herl.cli.overrides import for_hydra, lacking
from herl.display.terminal import VisibleStream, guard_errors, guard_logs, say
from herl.distributed import is_first_process
from herl.errors import ConfigError, HerlError, RunStopped, did_you_mean

if TYPE_CHECKING:
    from omegaconf import DictConfig

VERBS = {
    "fit": "train a policy; held-out reward before and after",
    "validate": "measure a model or a checkpoint on held-out prompts",
    "test": "the same on a benchmark",
    "improve": "let a model revise its own answers, without training",
    "export": "write a checkpoint as a Hugging Face folder",
    "inspect": "browse the answers that a run recorded",
    "compare": "runs side by side, with intervals, and their curves in a picture",
    "audit": "ask judges again about recorded answers: noise, bias, agreement",
    "lint": "look for errors and oddities in prompts and rubrics",
    "explain": "what a key, a group or a choice means, and its default",
    "new": "a folder to start from: rows, a reward function, a run",
    "fetch": "get smollm2 or qwen_coder (models) or ifbench (a benchmark)",
}
WITHOUT_HYDRA = {"explain": "herl.cli.explain", "new": "herl.cli.new", "fetch": "herl.cli.fetch"}
"""Modules of verbs that take words instead of a configuration; each has a function named as its verb."""
ELSEWHERE = {"audit": "herl.cli.audit"}
"""Modules of other verbs that are not in `herl.cli.commands`."""
LIGHT = {"inspect": "herl.records.inspect", "compare": "herl.report.compare"}
"""Modules of verbs that need no model and skip `herl.cli.commands`, which takes seconds to import."""
RUNS = ("fit", "validate", "test", "improve")
"""Verbs that judge answers."""

HELP = """herl: reinforcement learning of language models from rubric rewards and hindsight experience

usage: herl VERB [key=value ...] [hydra options]

{verbs}

  herl fit experiment=embedded              a tiny model: a minute on two CPU cores
  herl fit experiment=embedded algorithm=grpo seed=1
  herl fit experiment=smollm2_if            a real pretrained model
  herl fit data=my.jsonl model=Qwen/Qwen2.5-0.5B-Instruct
  herl validate run=runs/...                a run's best checkpoint, with that run's settings
  herl test benchmark=ifbench model=smollm2
  herl improve run=runs/...                 answers revised at test time, round by round
  herl inspect runs/...                     drafts and revisions side by side
  herl compare runs/... runs/...            a table with intervals, and compare.png
  herl audit run=runs/...                   its judge, asked again about the run's answers
  herl export run=runs/... out=my_model     for transformers and vLLM
  herl fit --cfg job                        the whole configuration, without running it
  herl fit --config-dir . experiment=mine   a run or components of your own
  herl fit --help                           the groups, and the keys that most runs set
  herl explain rollout.attempts_per_prompt  what a key means
  herl new my_task                          ten rows, a reward function, five commands"""


NOTHING = """herl fit trains a model on prompts, and needs to be told which:

  herl fit experiment=embedded     a tiny model: a minute on two CPU cores
  herl fit experiment=smollm2_if   SmolLM2-135M (herl fetch smollm2)
  herl fit data=my.jsonl model=Qwen/Qwen2.5-0.5B-Instruct
                                   your own rows; a tenth is held out. judge=rule
                                   applies their checks; judge=llm asks a model
  herl new my_run                  a folder to start from

Add dry_run=true to try a few batches, and to see time, memory and cost first.
`herl --help` lists the other verbs, `herl fit --help` the settings."""
"""What `herl fit` prints if neither data nor a model is named."""
NOT_NAMED = {
    "model": """herl: error: no model is named, and there is no default. Add one of
  model=Qwen/Qwen2.5-0.5B-Instruct   a name on the Hugging Face hub, or a folder
  model=smollm2                      SmolLM2-135M (herl fetch smollm2)
  model=qwen_coder                   Qwen2.5-Coder-0.5B (herl fetch qwen_coder)
  model=tiny                         ships with herl, and writes about animals only""",
    "data": """herl: error: no data is named, and there is no default. Add one of
  data=my.jsonl                      your own rows; a tenth is held out
  data=hf:owner/name:train           rows on the Hugging Face hub
  data=instructions                  takes judge=instruction_following
  data=animals                       what model=tiny writes about""",
}
"""What `herl fit` prints if only the other is named."""


def main() -> None:
    """Entry point of the `herl` command."""
    try:
        _main()
        sys.stdout.flush()
    except BrokenPipeError:
        _end_unless_read()
        raise


def _main() -> None:
    spin_briefly()
    guard_errors()
    guard_logs()
    verb = sys.argv[1] if len(sys.argv) > 1 else "--help"
    verb = verb.removeprefix("--config-name=")  # in processes that Lightning starts from our sys.argv
    if verb in ("-h", "--help"):
        listed = "\n".join(f"  {name:<10} {help_text}" for name, help_text in VERBS.items())
        say(HELP.format(verbs=listed))
    elif verb in ("-V", "--version"):
        say(f"herl {version('herl')}")
    elif verb in WITHOUT_HYDRA:
        try:
            getattr(import_module(WITHOUT_HYDRA[verb]), verb)(sys.argv[2:])
        except HerlError as error:
            fail(str(error))
        except KeyboardInterrupt:
            fail("interrupted")
        except BrokenPipeError:
            raise
        except OSError as error:
            fail(f"{verb}: {error}")
    elif verb in VERBS and {"-h", "--help"} & set(sys.argv[2:]):
        from herl.cli.explain import verb_help

        verb_help(verb)
    elif verb in VERBS:
        if not sys.argv[1].startswith("--config-name="):
            try:
                sys.argv[2:] = for_hydra(verb, sys.argv[2:])
            except ConfigError as error:
                fail(str(error))
            if verb == "fit" and (names := lacking(sys.argv[2:])):
                say(NOTHING if len(names) == 2 else NOT_NAMED[names[0]], stderr=True)
                raise SystemExit(2)
        _run_hydra(verb)
    else:
        fail(f"unknown verb '{verb}'; expected one of {', '.join(VERBS)}." + did_you_mean(verb, VERBS))


def _run_hydra(verb: str) -> None:
    import hydra
    from hydra.core.plugins import Plugins

    from herl.cli.hydra_settings import checked_settings
    from herl.cli.run_folder import release
    from herl.cli.run_name import register
    from herl.config.check import conf_dir

    register()

    # Lightning starts more processes from sys.argv, so the verb must survive there as a Hydra option.
    sys.argv[1:] = [f"--config-name={verb}", *sys.argv[2:]]
    Plugins.instance()  # imports every hydra_plugins it finds, so not yet those of the current folder
    sys.path.insert(0, "")  # console scripts lack the current folder, where plug-ins live
    started = failed = False

    said, output, shown = StringIO(), sys.stdout, sys.stderr

    def command(config: DictConfig) -> None:
        nonlocal started
        started, sys.stdout, sys.stderr = True, output, shown
        _call(verb, config)

    try:
        sys.stdout = VisibleStream(output)  # such as --cfg job
        with _run_folder(), checked_settings():
            if not os.environ.get("HYDRA_FULL_ERROR"):
                sys.stderr = said
            hydra.main(version_base="1.3", config_path=str(conf_dir()), config_name=verb)(command)()
    except SystemExit as stop:
        sys.stdout, sys.stderr = output, shown
        if stop.code and not started:
            import_module("herl.cli.hydra_errors").explain(verb, said.getvalue(), sys.argv[2:])
        failed = stop.code == 2 or bool(stop.code and not started)
        raise
    finally:
        sys.stdout, sys.stderr = output, shown
        release(failed)


def _call(verb: str, config: DictConfig) -> None:
    """Does what the verb says, and turns errors into messages and exit codes."""
    from hydra.core.hydra_config import HydraConfig

    from herl.cli.own_runs import sign

    try:
        if verb not in LIGHT:  # before the heavy imports
            typed = list(HydraConfig.get().overrides.task)
            early = import_module("herl.config.early")
            early.check_early(config, typed, judges=verb in RUNS, gold=verb == "fit")
        if is_first_process():
            sign(Path(HydraConfig.get().runtime.output_dir, ".hydra"))
        commands = import_module({**LIGHT, **ELSEWHERE}.get(verb, "herl.cli.commands"))
        guard_logs()  # those that Hydra and the packages have set up by now
        getattr(commands, verb)(config)
    except RunStopped as stop:
        # the scheduler that ends a fit starts it again; what else is ended has no result
        raise SystemExit(0 if verb == "fit" and stop.signal != SIGINT else 128 + stop.signal) from stop
    except HerlError as error:
        fail(str(error))
    except KeyboardInterrupt:
        fail("interrupted")
    except BrokenPipeError:
        _end_unless_read()
        raise
    except Exception:
        sys.stderr = VisibleStream(sys.stderr)  # Hydra prints it
        raise


@contextmanager
def _run_folder() -> Iterator[None]:
    """Keeps the other ranks of torchrun and SLURM from creating run folders named by their own clocks.

    Rank 0 writes the run's files, or tells the other ranks where to write.
    """
    if is_first_process() or any(argument.startswith("hydra.run.dir=") for argument in sys.argv):
        yield
        return
    with tempfile.TemporaryDirectory(prefix="herl-rank-") as folder:
        sys.argv += [f"hydra.run.dir={folder}", "hydra.output_subdir=null"]
        yield


def _end_unless_read() -> None:
    """Ends the process without a word if nobody reads its output anymore, as in `herl explain | head`."""
    with suppress(OSError, ValueError):  # no file, or a closed one
        output = select.poll()
        output.register(sys.stdout.fileno(), select.POLLOUT)
        if any(event & (select.POLLERR | select.POLLHUP) for _, event in output.poll(0)):
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # Python flushes at its end
            raise SystemExit(128 + SIGPIPE)


def fail(message: str) -> NoReturn:
    """Prints an error and ends the process with code 2."""
    from herl.report.secret import redacted

    say(f"herl: error: {redacted(message)}", stderr=True)
    raise SystemExit(2)
