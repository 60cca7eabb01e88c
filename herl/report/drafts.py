"""Picks the recorded answers that a report shows: the revisions that gained and lost most, and the newest."""

from __future__ import annotations

from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np

from herl import prompt_text
from herl.records.inspect import MARKS, Found, Query, find, gains, reward_text, word_diff
from herl.records.lines import checked, read_records
from herl.records.turns import Said, episode_facts, recorded_turns, side_by_side

MAX_CHARACTERS = 2000
"""Limit for one text; the rest is cut off."""
_NEWEST = 200
_RECORDS_FOR_NAMES = 2000


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """A criterion with the verdicts on draft and revision."""

    criterion: str
    weight: str
    draft: str
    """One of `MARKS`, or "" if there is no draft."""
    answer: str
    reason: str
    """The judge's reason for the verdict on the answer."""


Words = tuple[tuple[str, str], ...]
"""(kind, words): kind is "same", "gone" or "new"."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Part:
    """A turn of an episode before its last, or a reply, in draft and answer."""

    label: str
    draft: Words
    answer: Words


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """An answer to show, beside its draft if it is a revision."""

    title: str
    request: str
    episode: str
    """The size and the end of an episode in words; "" for an answer in one turn."""
    parts: tuple[Part, ...]
    """What came before the last turn; empty for an answer in one turn."""
    draft: Words
    """Empty if there is no draft."""
    answer: Words
    draft_reward: str
    reward: str
    lines: tuple[Line, ...]


def examples(folder: Path) -> list[Shown]:
    """Returns up to three revisions with their drafts; without revisions, up to three answers.

    Args:
        folder: A run's folder. The result is empty if it has no recorded answers.
    """
    if not _has_records(folder):
        return []
    newest = find(folder, Query(order="last", max_answers=_NEWEST))
    candidates = [
        ("The revision that gained most", find(folder, Query(order="improved", max_answers=1))),
        ("The revision that lost most", find(folder, Query(order="broken", max_answers=1))),
        ("The newest revision", [one for one in newest if one.draft]),
    ]
    if not candidates[0][1]:
        candidates = [
            ("The best answer", find(folder, Query(order="best", max_answers=1))),
            ("The worst answer", find(folder, Query(order="worst", max_answers=1))),
            ("The newest answer", newest),
        ]
    shown: dict[str, Shown] = {}
    for title, found in candidates:
        new = [one for one in found if one.answer["id"] not in shown and _is_as_said(title, one)]
        shown |= {one.answer["id"]: _shown(title, one) for one in new[:1]}
    return list(shown.values())


def revision_gains(folder: Path) -> np.ndarray:
    """Returns the reward of each recorded revision minus its draft's, [revisions]; see `gains`."""
    return gains(folder) if _has_records(folder) else np.empty(0)


def criterion_texts(folder: Path) -> dict[str, str]:
    """Returns the text of each criterion id, where the first records agree on one."""
    if not _has_records(folder):
        return {}
    texts: dict[str, set[str]] = {}
    for number, record in enumerate(islice(read_records(folder), _RECORDS_FOR_NAMES), 1):
        for verdict in checked(record, f"{folder}: answer {number}")["verdicts"]:
            texts.setdefault(verdict["criterion_id"], set()).add(verdict["criterion"])
    return {name: visible(*said) for name, said in texts.items() if len(said) == 1}


def visible(text: str) -> str:
    """Returns a text of limited length, as it can be shown."""
    return prompt_text.visible(text, MAX_CHARACTERS)


def _has_records(folder: Path) -> bool:
    return any((folder / "records").glob("answers*.jsonl")) or any(folder.glob("answers*.jsonl"))


def _is_as_said(title: str, found: Found) -> bool:
    """Whether the revision that lost most lost anything, and the one that gained most gained."""
    if found.draft is None:
        return True
    gain = (found.answer["reward"] or 0.0) - (found.draft["reward"] or 0.0)
    return gain > 0 if title.endswith("gained most") else gain < 0 or not title.endswith("lost most")


def _shown(title: str, found: Found) -> Shown:
    answer, draft = found.answer, found.draft
    before = {v["criterion_id"]: v for v in (draft or {}).get("verdicts", ())}
    turns = recorded_turns(answer)
    said = side_by_side(
        (recorded_turns(draft), draft["text"]) if draft else ((), ""), (turns, answer["text"])
    )
    *parts, last = [_compared(one, revised=draft is not None) for one in said]
    return Shown(
        title=title,
        request=visible(answer["request"]),
        episode=episode_facts(turns, str(answer.get("finish_reason"))),
        parts=tuple(parts),
        draft=last.draft,
        answer=last.answer,
        draft_reward=reward_text(draft["reward"]) if draft else "",
        reward=reward_text(answer["reward"]),
        lines=tuple(
            Line(
                criterion=visible(verdict["criterion"]),
                weight=f"{abs(verdict['weight']):g}",
                draft=MARKS[before.get(verdict["criterion_id"], {}).get("fulfilled")][0] if draft else "",
                answer=MARKS[verdict.get("fulfilled")][0],
                reason=visible(verdict.get("reason") or ""),
            )
            for verdict in answer["verdicts"]
        ),
    )


def _compared(said: Said, *, revised: bool) -> Part:
    """What draft and answer say in one part, with the changes if the answer is a revision."""
    changes = word_diff(visible(said.before), visible(said.after))
    return Part(
        label=said.label,
        draft=tuple((kind, words) for kind, words in changes if kind != "new"),
        answer=tuple((kind if revised else "same", words) for kind, words in changes if kind != "gone"),
    )
