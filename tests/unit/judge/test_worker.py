"""Functions in a separate process: what is late, dies or prints there, and what does not suffer from it."""

import asyncio
import os
import signal
import subprocess
import sys
import time

import pytest

from herl import ConfigError
from herl.judge import JudgeRunner
from herl.judge.function import FunctionJudge
from herl.judge.worker import shared
from herl.testing import make_rollout, make_task

MODULE = """
import asyncio, os, re, sys, threading, time

def ok(task, text):
    print("some words", flush=True)
    return {"fish": "fish" in text, "river": os.getpid() != task.meta["pid"]}

def sleeps(task, text):
    time.sleep(100 if text == "bad" else 0)
    return 0.5

def holds(task, text):  # the interpreter
    return 0.5 if re.match("(a|aa)+$", "a" * (70 if text == "bad" else 1) + "b") is None else 1.0

def dies(task, text):
    time.sleep(0.05)
    os._exit(7) if text == "bad" else None
    return 0.5

async def waits(task, text):
    await asyncio.sleep(100 if text == "bad" else 0)
    return 0.5

async def blocks(task, text):
    time.sleep(100 if text == "bad" else 0)
    return 0.5

def breaks(task, text):
    return {"fish": 1 / 0}

def locked(task, text):
    return threading.Lock()

def leaves(task, text):
    sys.exit(3)
"""


@pytest.fixture(scope="module", autouse=True)
def functions(tmp_path_factory):
    folder = tmp_path_factory.mktemp("functions")
    (folder / "of_worker.py").write_text(MODULE)
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(folder)
        patch.setenv("HERL_ALLOW_TARGETS", "of_worker")
        yield folder
    shared().close()


def judged(function, texts, **settings):
    judge = FunctionJudge(f"of_worker.{function}", **settings)
    task = make_task()
    object.__setattr__(task, "meta", {"pid": os.getpid()})
    with JudgeRunner(judge) as runner:
        futures = [runner.submit(task, make_rollout(text, id=f"g/{n}")) for n, text in enumerate(texts)]
        return [future.result().judgement for future in futures]


def test_a_path_is_called_in_another_process_whose_prints_go_to_stderr(capfd):
    shared().close()  # the process writes to the stderr that it was started with
    [judgement] = judged("ok", ["fish"])
    assert [verdict.met for verdict in judgement.verdicts] == [True, True]
    [here] = judged("ok", ["fish"], timeout_seconds=None)
    assert [verdict.met for verdict in here.verdicts] == [True, False]
    out, err = capfd.readouterr()
    assert (out.count("some words"), err.count("some words")) == (1, 1)


@pytest.mark.parametrize("function", ["sleeps", "holds", "waits", "blocks"])
def test_the_late_call_abstains_and_the_others_do_not(function, monkeypatch):
    monkeypatch.setattr("herl.judge.worker._PATIENCE", 0.2)
    judgements = judged(function, ["good", "bad", "good", "good"], timeout_seconds=0.3)
    assert [judgement.reward for judgement in judgements] == [0.5, None, 0.5, 0.5]
    assert judgements[1].usage["abstained_timeout"] == 2
    told = f"of_worker.{function} took longer than judge.timeout_seconds=0.3 seconds"
    assert told in judgements[1].verdicts[0].reason


def test_a_call_that_ends_the_process_abstains_alone():
    judgements = judged("dies", ["good", "bad", "good"])
    assert [judgement.reward for judgement in judgements] == [0.5, None, 0.5]
    assert "of_worker.dies: the process that called it ended with code 7" in judgements[1].verdicts[0].reason


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("breaks", "of_worker.breaks raised ZeroDivisionError: division by zero"),
        ("locked", "raised TypeError: its result, a lock, cannot be sent to the run"),
        ("leaves", "of_worker.leaves raised SystemExit: 3"),
    ],
)
def test_what_a_function_raises_comes_back_with_its_line(function, words, caplog):
    [judgement] = judged(function, ["good"])
    assert words in judgement.verdicts[0].reason
    assert "of_worker.py:" in caplog.text


def test_arguments_that_cannot_be_sent_are_named(monkeypatch):
    monkeypatch.setattr("herl.judge.function._holistic", {})
    task = make_task()
    object.__setattr__(task, "meta", {"f": lambda: 0})
    judge = FunctionJudge("of_worker.sleeps")
    with pytest.raises(ConfigError, match="its arguments cannot be sent .* Set judge.timeout_seconds=null"):
        judge.check_task(task)


def test_the_trial_before_the_run_has_the_limit_too(monkeypatch):
    monkeypatch.setattr("herl.judge.function.MADE_UP", "bad")
    monkeypatch.setattr("herl.judge.function._holistic", {})
    with pytest.raises(
        ConfigError, match=r"holds took longer than judge.timeout_seconds=0.2 seconds\nIt was called"
    ):
        FunctionJudge("of_worker.holds", timeout_seconds=0.2).check_task(make_task())


@pytest.mark.parametrize("seconds", [0, -1])
def test_a_limit_is_above_zero(seconds):
    with pytest.raises(ConfigError, match="judge.timeout_seconds: expected a number above 0"):
        FunctionJudge("of_worker.ok", timeout_seconds=seconds)


def test_a_function_object_has_the_limit_in_its_thread():
    def slow(task, text):
        time.sleep(3)

    async def waits(task, text):
        await asyncio.sleep(100)

    for function in (slow, waits):
        started = time.perf_counter()
        with JudgeRunner(FunctionJudge(function, timeout_seconds=0.1)) as runner:
            judgement = runner.submit(make_task(), make_rollout()).result().judgement
        assert judgement.usage["abstained_timeout"] == 2
        assert time.perf_counter() - started < 2


def test_the_process_ends_with_its_parent_even_if_a_function_holds_it(functions):
    program = (
        "import re, os, sys, time\n"
        "from herl.judge.worker import shared\n"
        "import of_worker\n"
        "worker = shared()\n"
        "answers = [worker.call('of_worker.holds', of_worker.holds, (None, text), {}, seconds=60, key='k')\n"
        "           for text in ('good', 'bad')]\n"
        "answers[0].result()\n"
        "print(worker._child.process.pid, flush=True)\n"
        "time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": os.pathsep.join([str(functions), *filter(None, sys.path)])}
    parent = subprocess.Popen(
        [sys.executable, "-c", program], env=environment, stdout=subprocess.PIPE, text=True
    )
    with parent:
        child = int(parent.stdout.readline())
        time.sleep(0.1)
        parent.send_signal(signal.SIGKILL)
    for _ in range(100):
        if not _runs(child):
            return
        time.sleep(0.05)
    os.kill(child, signal.SIGKILL)
    pytest.fail("the child still runs")


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:  # a zombie, where nothing collects orphans
        return file.read().rpartition(")")[2].split()[0] != "Z"
