"""House style: what a good answer looks like depends on the kind of request, and the request does not say it.

    python tools/study/style.py rows        # train.jsonl, heldout.jsonl, tuning.jsonl

Six kinds of request times topics. Each kind has a rubric that the policy never sees: two or three rare items,
mostly a commoner one, a word limit, and the guards of every kind: on topic, and not too short. Held-out and
tuning prompts have separate topics, so that they measure a rule and not a memory of prompts. All is
judged by rules (`judge=rule`).
"""

from __future__ import annotations

import json
import random
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from herl.files import whole

SPLITS = {"train": 24, "heldout": 8, "tuning": 8}
"""Topics of each file; a file has six prompts for each of them."""
MAX_WORDS, MIN_WORDS = 30, 12

TOPICS = {
    "baking bread": ["bread", "bak"],
    "a rainy weekend": ["rain"],
    "growing tomatoes": ["tomato"],
    "caring for a cat": ["cat"],
    "saving money": ["money", "save", "saving"],
    "walking in the forest": ["forest", "walk", "wood"],
    "sleeping better": ["sleep"],
    "a day at the beach": ["beach"],
    "learning a new language": ["language"],
    "winter evenings": ["winter", "evening"],
    "a visit to the library": ["librar"],
    "packing for a trip": ["pack", "trip"],
    "a family breakfast": ["breakfast"],
    "planning a birthday party": ["birthday", "party"],
    "cleaning the kitchen": ["kitchen", "clean"],
    "choosing a present": ["present", "gift"],
    "running for the first time": ["run"],
    "riding a bicycle": ["bicycl", "bike", "rid"],
    "repairing a flat tire": ["tire"],
    "the first day at a new job": ["job", "work"],
    "playing the guitar": ["guitar"],
    "watching birds": ["bird"],
    "drinking enough water": ["water"],
    "using a map": ["map"],
    "cooking soup": ["soup"],
    "a train journey": ["train"],
    "painting a room": ["paint", "room"],
    "adopting a dog": ["dog"],
    "studying for an exam": ["exam", "stud"],
    "a picnic with friends": ["picnic"],
    "growing roses": ["rose"],
    "swimming in a lake": ["swim", "lake"],
    "making tea": ["tea"],
    "moving to a new house": ["mov", "house", "home"],
    "taking photographs": ["photo", "pictur"],
    "a walk in the snow": ["snow"],
    "writing a letter": ["letter", "writ"],
    "keeping bees": ["bee"],
    "learning to dance": ["danc"],
    "a visit to the dentist": ["dentist"],
}
"""Topic -> how a word may begin that shows that an answer is about it."""

KINDS = {
    "note": ("Write a short note about {topic}.", ["hello", "best", "exclamation"]),
    "advice": ("Give some advice on {topic}.", ["careful", "title", "digit"]),
    "describe": ("Describe {topic} in a few words.", ["title", "thanks", "question"]),
    "message": ("Write a brief message to a friend about {topic}.", ["hello", "postscript", "question"]),
    "know": ("What should one know about {topic}?", ["careful", "thanks", "digit"]),
    "explain": ("Explain {topic} to a child.", ["best", "title", "because"]),
}
"""Kind -> its request, and the items of its rubric."""

RARE, COMMON = 3, 2
"""Weights."""
ITEMS: dict[str, tuple[str, int, dict[str, Any]]] = {
    "hello": ("Start with the word Hello.", RARE, {"kind": "starts_with", "text": "Hello"}),
    "title": (
        "Give a title in double angular brackets, such as <<joy>>.",
        RARE,
        {"kind": "regex", "pattern": r"<<(?!\s*joy)[^<>\n]+>>"},  # the example does not count
    ),
    "best": (
        "End with the exact words: All the best.",
        RARE,
        {"kind": "regex", "pattern": r"(?i)\ball the best\W*$"},
    ),
    "careful": ("Warn with the words: Be careful", RARE, {"kind": "contains", "text": "be careful"}),
    "postscript": ("Add a P.S. at the end.", RARE, {"kind": "contains", "text": "P.S."}),
    "thanks": (
        "Thank the reader.",
        RARE,
        {"kind": "regex", "pattern": r"(?i)\bthank(?:s\b(?! to\b)| you\b)"},
    ),
    "question": ("Ask a question.", COMMON, {"kind": "contains", "text": "?"}),
    "exclamation": ("Use an exclamation mark.", COMMON, {"kind": "contains", "text": "!"}),
    "digit": ("Give a number in digits.", COMMON, {"kind": "regex", "pattern": r"\d"}),
    "because": ("Use the word because.", COMMON, {"kind": "regex", "pattern": r"(?i)\bbecause\b"}),
}
"""Id -> what an answer should do, its weight, and its check."""


def rows(topics: Sequence[str], seed: int) -> list[dict[str, Any]]:
    """Returns a row for each kind of request and topic, in an order that the seed decides."""
    found = [
        {
            "id": f"{kind}-{topic.replace(' ', '-')}",
            "prompt": request.format(topic=topic),
            "rubric": list(_rubric(items, topic)),
        }
        for kind, (request, items) in KINDS.items()
        for topic in topics
    ]
    random.Random(f"{seed} {' '.join(topics)}").shuffle(found)
    return found


def _rubric(items: Sequence[str], topic: str) -> Iterator[dict[str, Any]]:
    for name in items:
        text, weight, check = ITEMS[name]
        yield {"id": name, "text": text, "weight": weight, "check": check}
    limit = {"kind": "max_words", "count": MAX_WORDS}
    yield {"id": "short", "text": f"Use at most {MAX_WORDS} words.", "weight": 3, "check": limit}
    about = {"kind": "regex", "pattern": rf"(?i)\b(?:{'|'.join(TOPICS[topic])})"}
    yield {"id": "topic", "text": f"Talk about {topic}.", "weight": 3, "check": about}
    least = {"kind": "min_words", "count": MIN_WORDS}
    yield {"id": "long", "text": f"Use at least {MIN_WORDS} words.", "weight": 2, "check": least}


def splits(seed: int = 0) -> dict[str, list[dict[str, Any]]]:
    """Returns the rows of each file. The seed decides which topics a file gets."""
    topics = sorted(TOPICS)
    random.Random(seed).shuffle(topics)
    found, start = {}, 0
    for name, count in SPLITS.items():
        found[name] = rows(topics[start : start + count], seed)
        start += count
    return found


def write(folder: Path, seed: int = 0) -> None:
    """Writes train.jsonl, heldout.jsonl and tuning.jsonl."""
    for name, several in splits(seed).items():
        with whole(folder / f"{name}.jsonl") as part:
            part.write_text("".join(json.dumps(row) + "\n" for row in several), encoding="utf-8")


if __name__ == "__main__":
    write(Path(sys.argv[1] if len(sys.argv) > 1 else "."))
