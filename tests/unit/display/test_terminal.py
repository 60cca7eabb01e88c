"""No control character of a row, an answer, a judge or a folder reaches the terminal."""

import ast
import io
import json
import logging
import re
import sys
import threading
import traceback
import warnings
from pathlib import Path

import pytest
from rich.table import Table
from rich.text import Text

from herl.callbacks.markup import plain
from herl.cli.banner import banner
from herl.display.screen import Screen
from herl.display.terminal import VisibleStream, guard_errors, guard_logs, say
from herl.prompt_text import visible
from tests.support.runs import herl_here, same_logging
from tests.unit.display.hostile import EVIL, controls

ROOT = Path(__file__).parents[3]


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        ("\x1b]52;c;YQ==\x07", "␛]52;c;YQ==␇"),
        ("a\x9b31m\x7f\x00", "a\\x9b31m␡␀"),
        ("\u202etxt\u2066\u200f\u061c", "\\u202etxt\\u2066\\u200f\\u061c"),
        (
            "half \ud83d, whole 😀, 日本, é, עברית\ta\nb\r\nc\rd",
            "half \\ud83d, whole 😀, 日本, é, עברית\ta\nb\nc␍d",
        ),
    ],
)
def test_control_characters_become_visible_and_all_else_stays(text, shown):
    assert visible(text) == shown
    assert visible(shown) == shown


def test_only_this_room_prints():
    for path in (ROOT / "herl").rglob("*.py"):
        source = path.read_text()
        if (
            "assets" in path.parts
            or path.parts[-2] == "display"
            or not re.search(r"print\(|Console\(", source)
        ):
            continue
        for node in ast.walk(ast.parse(source)):
            name = getattr(getattr(node, "func", None), "id", "") if isinstance(node, ast.Call) else ""
            assert name not in ("print", "Console", "pprint"), f"{path}:{node.lineno}: use say or Screen"


def test_a_screen_shows_texts_tables_and_titles_literally():
    screen = Screen(file=io.StringIO(), width=200)
    table = Table(EVIL, title=EVIL, caption=EVIL)
    table.add_row(EVIL)
    table.add_row(Text(EVIL))
    for one in (EVIL, Text(EVIL), table, "[red]a[/red] :smile:"):
        screen.print(one)
    screen.rule(EVIL)
    said = screen.file.getvalue()
    assert not controls(said)
    assert "[red]a[/red] :smile:" in said


def test_colors_of_our_own_stay_and_links_of_others_do_not(monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setenv("TERM", "xterm")
    screen = Screen(file=io.StringIO())
    screen.print(Text("met", style="green"), Text.from_markup("[link=http://x]y[/link]"))
    said = screen.file.getvalue()
    assert "\x1b[32mmet\x1b[0m" in said
    assert "\x1b]8" not in said


def test_log_lines_warnings_and_tracebacks_are_shown_without_control_characters(monkeypatch, capsys):
    monkeypatch.setattr(sys, "excepthook", sys.excepthook)
    monkeypatch.setattr(threading, "excepthook", threading.excepthook)
    monkeypatch.setattr(warnings, "formatwarning", warnings.formatwarning)
    stream = io.StringIO()
    logger = logging.getLogger("herl.test_of_the_terminal")
    handler = logging.StreamHandler(stream)
    handler.setFormatter(logging.Formatter("%(levelname)s %(message)s"))
    monkeypatch.setattr(logger, "handlers", [handler])
    guard_errors()
    with same_logging():
        guard_logs()
        guard_logs()
        try:
            raise ValueError(EVIL)
        except ValueError as error:
            logger.exception("answer %s", EVIL)
            sys.excepthook(*sys.exc_info())
            print(*traceback.format_exception_only(error), file=VisibleStream(sys.stdout))
    said = warnings.formatwarning(EVIL, UserWarning, "f.py", 1)
    say(EVIL)
    thread = threading.Thread(target=lambda: 1 / 0, name=EVIL)
    thread.start()
    thread.join()
    got = capsys.readouterr()
    assert "ZeroDivisionError" in got.err
    assert stream.getvalue().startswith("ERROR answer ")
    for text in (stream.getvalue(), said, got.out, got.err):
        assert "owned" in text
        assert not controls(text)


def test_pages_and_the_banner_show_control_characters_too():
    assert not controls("".join(banner({"model": EVIL, "folder": EVIL})))
    assert not controls(plain(EVIL))


@pytest.fixture
def rows(tmp_path):
    rubric = [{"id": EVIL, "text": EVIL, "category": EVIL, "check": {"kind": "contains", "text": "a"}}]
    listed = [{"id": f"{n} {EVIL}", "prompt": f"{n} {EVIL}", "rubric": rubric, EVIL: 1} for n in range(3)]
    bad = {"id": EVIL, "prompt": "p", "rubric": [{"id": EVIL, "text": EVIL, "weight": EVIL}]}
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in [*listed, *listed[:1], bad]))
    return path


@pytest.mark.parametrize(
    "arguments",
    [
        (EVIL,), ("explain", EVIL), ("fetch", EVIL), ("new", EVIL, EVIL), ("inspect", EVIL),
        ("compare", EVIL, EVIL), ("fit", f"data={EVIL}.jsonl"), ("fit", "experiment=embedded", f"{EVIL}=1"),
        ("fit", "experiment=embedded", f"judge={EVIL}"), ("export", f"run={EVIL}"), ("improve", f"prompt={EVIL}"),
        ("lint", "data=ROWS", "model=tiny"), ("fit", "data=ROWS", "model=tiny"), ("validate", "run=ROWS"),
        ("fit", "experiment=embedded", f"model.path='{EVIL}'", "--cfg", "job"),
    ],
    ids=lambda words: f"{words[0]!a} {len(words)}",
)  # fmt: skip
def test_no_verb_prints_a_control_character_of_its_input(tmp_path, rows, arguments):
    words = [word.replace("ROWS", str(rows)) for word in arguments]
    done = herl_here(*words, cwd=tmp_path)
    assert not controls(done.stdout)
    assert not controls(done.stderr)
    assert done.stdout + done.stderr


@pytest.mark.integration
def test_a_run_on_hostile_rows_and_answers_ends_well_and_shows_none_of_it(tmp_path):
    """Ids that are formulas, answers that are escape sequences: on the screen, in the report and in pictures."""
    evil = EVIL.replace("\ud83d", "")  # rows with it are refused
    rubric = [
        {"id": f"{n} {evil}", "text": evil, "check": {"kind": "contains", "text": f"{n}"}} for n in range(2)
    ]
    rows = [{"id": f"{n} {evil}", "prompt": f"{n} {evil}", "rubric": rubric} for n in range(4)]
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    answers = {row["id"]: [f"0 1 {evil}", f"1 {evil}", evil, "0"] for row in rows}
    (tmp_path / "sampler").mkdir()
    (tmp_path / "sampler" / "mine.yaml").write_text(
        json.dumps(
            {"_target_": "herl.sampler.scripted.ScriptedSampler", "attempts": answers, "revisions": answers}
        )
    )
    done = herl_here(
        "fit", "data=file", "data.train.path=rows.jsonl", "data.heldout.path=rows.jsonl", "model=tiny", "sampler=mine",
        "--config-dir", ".", "trainer.max_epochs=2", "data.prompts_per_batch=2", "rollout.attempts_per_prompt=4",
        "hydra.run.dir=run", "trainer.accelerator=cpu", cwd=tmp_path,
    )  # fmt: skip
    said = done.stdout + done.stderr
    assert done.returncode == 0, said
    assert "owned" in done.stdout
    assert not controls(said)
    assert "cannot write" not in said
    for verb in (("inspect", "run"), ("compare", "run", "run")):
        shown = herl_here(*verb, cwd=tmp_path)
        assert shown.returncode == 0, shown.stderr
        assert not controls(shown.stdout + shown.stderr)
    page = (tmp_path / "run" / "report.html").read_text()
    assert "owned" in page
    assert "<script" not in page
    assert not controls(page)
