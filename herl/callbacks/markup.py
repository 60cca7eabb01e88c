"""Escapes model and judge text so that TensorBoard, which renders Markdown and HTML, shows it literally."""

from __future__ import annotations

import re
from dataclasses import replace

from herl import prompt_text
from herl.records.inspect import MARKS, reward_text, word_diff
from herl.records.turns import episode_facts, side_by_side, spoken
from herl.types import Judged, Rollout, Task

_PUNCTUATION = re.compile(r"[!-/:-@\[-`{-~]")
MAX_CHARACTERS = 4000
"""Limit for one text; the rest is cut off."""
MAX_OF_A_PART = 1000
"""The same for a turn before the last one, and for a reply."""


def plain(text: str) -> str:
    """Returns one line of Markdown source that shows a text literally, with all markup escaped."""
    shown = _PUNCTUATION.sub(lambda found: f"&#{ord(found[0])};", visible(text))
    return re.sub(r"\s*\n\s*", "<br>", shown.strip()) or "(nothing)"


def visible(text: str) -> str:
    """Returns a text of limited length, in valid Unicode without control characters; keeps markup."""
    return prompt_text.visible(text, MAX_CHARACTERS)


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
    facts = episode_facts(rollout.turns, rollout.finish_reason)
    episode = [f"**Episode** {facts}"] if facts else []
    episode += [f"**{label.capitalize()}** {plain(_cut(said))}" for label, said in spoken(rollout.turns)]
    thinking = [f"**Thinking** {plain(rollout.thinking)}"] if rollout.thinking else []
    return "\n\n".join(
        [
            f"**Prompt** {plain(task.request)}",
            *episode,
            *thinking,
            f"**Answer** (reward {reward_text(judged.judgement.reward)}) {plain(rollout.text)}",
            "\n".join(["| verdict | criterion | weight |", "|---|---|---|", *rows]),
        ]
    )


def revision_markdown(task: Task, draft: Judged, revision: Judged) -> str:
    """Returns draft and revision side by side, with changes in bold and both verdicts on each criterion."""
    both = (draft, revision)
    *turns, last = side_by_side(*((one.rollout.turns, one.rollout.text) for one in both))
    rows = [
        " | ".join(
            ["", f"{plain(c.wish)} ({abs(c.weight):g})", *(_verdict(task, one, c.id) for one in both), ""]
        )
        for c in task.rubric.criteria
    ]
    head = [
        f"| **{plain(task.request)}** | draft: {reward_text(draft.judgement.reward)} "
        f"| revision: {reward_text(revision.judgement.reward)} |",
        "|---|---|---|",
        *(_changes(said.label, _cut(said.before), _cut(said.after)) for said in turns),
        _changes(last.label, last.before, last.after),
    ]
    thoughts = [plain(one.rollout.thinking) if one.rollout.thinking else "" for one in both]
    if any(thoughts):
        rows.append(f"| thinking | {thoughts[0]} | {thoughts[1]} |")
    return "\n".join([*head, *rows])


def transcript(rollout: Rollout) -> str:
    """Returns an answer as text, of an episode all turns and replies; each is cut off on its own."""
    turns = [
        replace(
            turn,
            text=_cut(turn.text),
            reply=tuple({**message, "content": _cut(message["content"])} for message in turn.reply),
        )
        for turn in rollout.turns
    ]
    return prompt_text.visible(replace(rollout, turns=tuple(turns), text=visible(rollout.text)).transcript)


def _changes(label: str, before: str, after: str) -> str:
    """A row of a table: what draft and revision say, with the changes in bold."""
    changes = word_diff(before, after)
    gone = [_marked(text, kind == "gone") for kind, text in changes if kind != "new"]
    new = [_marked(text, kind == "new") for kind, text in changes if kind != "gone"]
    return f"| {label}{' ' * bool(label)}| {' '.join(gone)} | {' '.join(new)} |"


def _cut(said: str) -> str:
    return prompt_text.visible(said, MAX_OF_A_PART)


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
