"""Functions in a separate process: what is late, dies or prints there, and what does not suffer from it."""

import asyncio
import os
import pkgutil
import signal
import subprocess
import sys
import time

import pytest

from herl import ConfigError, JudgeError
from herl.background.worker import RaisedError, Worker, shared
from herl.judge import JudgeRunner
from herl.judge.function import FunctionJudge
from herl.testing import make_rollout, make_task

MODULE = """
import asyncio, ctypes, os, pathlib, re, signal, subprocess, sys, threading, time

def ok(task, text):
    print("some words\\x1b[2J")
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

class Wordless(Exception):
    def __str__(self):
        raise RuntimeError

def wordless(task, text):
    raise Wordless

class Odd:
    def __init__(self, *steps):
        self.steps = steps
    def __reduce__(self):
        if self.steps:
            return self.steps
        raise Wordless

def unsent(task, text):
    return Odd()

def unread(task, text):
    return Odd(wordless, (0, 0))

def leaves_when_sent(task, text):
    return Odd(sys.exit, (3,))

def forks(task, text):
    if child := os.fork():
        pathlib.Path(text).write_text(str(child))
    time.sleep(100)

def forks_and_dies(task, text):
    if child := os.fork():
        pathlib.Path(text).write_text(str(child))
        os._exit(7)
    time.sleep(100)

def starts(task, text):
    child = subprocess.Popen(["sleep", "100"])
    pathlib.Path(text).write_text(str(child.pid))
    child.wait()

def dies_while_another_is_late(task, text):
    time.sleep({"late": 100, "good": 0, "bad": 0.3}[text])
    if text == "bad":  # holds the interpreter, so the process does not answer
        signal.setitimer(signal.ITIMER_REAL, 0.5)
        ctypes.PyDLL(None).sleep(5)
    return 0.5
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


def test_a_path_is_called_in_another_process_whose_prints_are_shown_on_stderr_without_control_characters(
    capfd,
):
    [judgement] = judged("ok", ["fish"])
    assert [verdict.met for verdict in judgement.verdicts] == [True, True]
    shared().close()
    [here] = judged("ok", ["fish"], timeout_seconds=None)
    assert [verdict.met for verdict in here.verdicts] == [True, False]
    out, err = capfd.readouterr()
    assert (out.count("some words"), err.count("some words\u241b[2J\n")) == (1, 1)


@pytest.mark.parametrize("function", ["sleeps", "holds", "waits", "blocks"])
def test_the_late_call_abstains_and_the_others_do_not(function, monkeypatch):
    monkeypatch.setattr("herl.background.worker._PATIENCE", 0.2)
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
        ("wordless", "raised Wordless: (no text: its __str__ raised RuntimeError)"),
        ("unsent", "its result, a Odd, cannot be sent to the run ((no text: its __str__ raised"),
    ],
)
def test_what_a_function_raises_comes_back_with_its_line(function, words, caplog):
    [judgement] = judged(function, ["good"])
    assert words in judgement.verdicts[0].reason
    assert "of_worker.py:" in caplog.text


@pytest.fixture
def worker():
    worker = Worker()
    yield worker
    worker.close()


def called(worker, name, text, seconds=60):
    path = name if "." in name else f"of_worker.{name}"
    return worker.call(path, pkgutil.resolve_name(path), (None, text), {}, seconds=seconds, key="k")


@pytest.mark.parametrize("function", ["unread", "leaves_when_sent"])
def test_a_result_that_cannot_be_read_abstains(worker, function):
    with pytest.raises(JudgeError, match=r"its result cannot be read"):
        called(worker, function, "").result(timeout=10)


@pytest.mark.parametrize(
    ("function", "cause"), [("forks", "timeout"), ("starts", "timeout"), ("forks_and_dies", "function")]
)
def test_what_a_function_starts_ends_with_its_process(worker, function, cause, tmp_path):
    with pytest.raises(JudgeError) as told:
        called(worker, function, str(tmp_path / "pid"), 0.5).result(timeout=10)
    assert told.value.cause == cause
    assert _ends(int((tmp_path / "pid").read_text()))


def test_a_process_that_dies_while_it_is_checked_is_not_tried_for_ever(worker):
    function = "dies_while_another_is_late"
    called(worker, function, "good").result(timeout=10)
    late, bad = called(worker, function, "late", 0.4), called(worker, function, "bad", 5)
    time.sleep(0.5)
    good = called(worker, function, "good")
    assert good.result(timeout=10) == 0.5
    assert [call.exception(timeout=10).cause for call in (late, bad)] == ["timeout", "function"]


def test_an_import_has_a_limit_and_is_told(worker, functions, caplog, monkeypatch):
    monkeypatch.setattr("herl.background.worker._IMPORT_SECONDS", 0.3)
    monkeypatch.setattr("herl.background.worker._IMPORT_NOTE", 0.1)
    (functions / "of_hang.py").write_text(
        f"import os, time\nif os.getpid() != {os.getpid()}:\n    time.sleep(100)\ndef f(task, text): pass\n"
    )
    with pytest.raises(JudgeError, match=r"was ended, since its import of of_hang.f took longer than 0.3 s"):
        called(worker, "of_hang.f", "").result(timeout=10)
    assert "waiting for the import of of_hang.f in the process for users' functions" in caplog.messages


def test_a_module_that_leaves_is_told(worker, functions):
    (functions / "of_exit.py").write_text(
        f"import os, sys\nif os.getpid() != {os.getpid()}:\n    sys.exit(3)\ndef f(task, text): pass\n"
    )
    with pytest.raises(RaisedError, match="SystemExit: 3"):
        called(worker, "of_exit.f", "").result(timeout=10)


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
        "from herl.background.worker import shared\n"
        "import of_worker\n"
        "worker = shared()\n"
        "answers = [worker.call('of_worker.holds', of_worker.holds, (None, text), {}, seconds=60, key='k')\n"
        "           for text in ('good', 'bad')]\n"
        "answers[0].result()\n"
        "print(worker._child.pid, flush=True)\n"
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
    assert _ends(child)


def _ends(pid):
    for _ in range(100):
        if not _runs(pid):
            return True
        time.sleep(0.05)
    os.kill(pid, signal.SIGKILL)
    return False


def _runs(pid):
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    with open(f"/proc/{pid}/stat") as file:  # a zombie, where nothing collects orphans
        return file.read().rpartition(")")[2].split()[0] != "Z"
