"""Escapes model and judge text so that TensorBoard, which renders Markdown and HTML, shows it literally."""

from __future__ import annotations

import re

from herl.records.inspect import MARKS, word_diff
from herl.types import Judged, Task

_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")
_CONTROL = re.compile(r"[\x00-\x08\x0b-\x1f\x7f\u202a-\u202e\u2066-\u2069]")
MAX_CHARACTERS = 4000
"""Limit for one text; the rest is cut off."""


def plain(text: str) -> str:
    """Returns one line of Markdown source that shows a text literally, with all markup escaped."""
    shown = _PUNCTUATION.sub(lambda found: f"&#{ord(found[0])};", visible(text))
    return re.sub(r"\s*\n\s*", "<br>", shown.strip()) or "(nothing)"


def visible(text: str) -> str:
    """Returns a text of limited length, in valid Unicode without control characters; keeps markup."""
    if len(text) > MAX_CHARACTERS:
        text = f"{text[:MAX_CHARACTERS]} ... ({len(text)} characters)"
    return _CONTROL.sub("", text).encode("utf-8", "replace").decode()


def sign(good: bool | None) -> str:
    """Returns the mark for a verdict: fulfilled, missed or abstained."""
    return MARKS[good][0]


def answer_markdown(task: Task, judged: Judged) -> str:
    """Returns an answer with its prompt and verdicts, as Markdown."""
    rows = [
        f"| {_verdict(task, judged, c.id)} | {plain(c.wish)} | {abs(c.weight):g} |"
        for c in task.rubric.criteria
    ]
    rollout = judged.rollout
    thinking = [f"**Thinking** {plain(rollout.thinking)}"] if rollout.thinking else []
    return "\n\n".join(
        [
            f"**Prompt** {plain(task.request)}",
            *thinking,
            f"**Answer** (reward {_number(judged.judgement.reward)}) {plain(rollout.text)}",
            "\n".join(["| verdict | criterion | weight |", "|---|---|---|", *rows]),
        ]
    )


def revision_markdown(task: Task, draft: Judged, revision: Judged) -> str:
    """Returns draft and revision side by side, with changes in bold and both verdicts on each criterion."""
    changes = word_diff(draft.rollout.text, revision.rollout.text)
    before = [_marked(text, kind == "gone") for kind, text in changes if kind != "new"]
    after = [_marked(text, kind == "new") for kind, text in changes if kind != "gone"]
    both = (draft, revision)
    rows = [
        " | ".join(
            ["", f"{plain(c.wish)} ({abs(c.weight):g})", *(_verdict(task, one, c.id) for one in both), ""]
        )
        for c in task.rubric.criteria
    ]
    head = [
        f"| **{plain(task.request)}** | draft: {_number(draft.judgement.reward)} "
        f"| revision: {_number(revision.judgement.reward)} |",
        "|---|---|---|",
        f"| | {' '.join(before)} | {' '.join(after)} |",
    ]
    thoughts = [plain(one.rollout.thinking) if one.rollout.thinking else "" for one in both]
    if any(thoughts):
        rows.append(f"| thinking | {thoughts[0]} | {thoughts[1]} |")
    return "\n".join([*head, *rows])


def _verdict(task: Task, judged: Judged, criterion_id: str) -> str:
    """The mark and the judge's reason."""
    for verdict in judged.judgement.verdicts:
        if verdict.criterion_id == criterion_id:
            criterion = next(c for c in task.rubric.criteria if c.id == criterion_id)
            good = None if verdict.met is None else criterion.good(verdict.met)
            return f"{sign(good)} {plain(verdict.reason)}" if verdict.reason else sign(good)
    return ""


def _marked(text: str, changed: bool) -> str:
    return f"<strong>{plain(text)}</strong>" if changed else plain(text)


def _number(reward: float | None) -> str:
    return "not judged" if reward is None else f"{reward:.2f}"
