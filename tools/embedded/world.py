"""The embedded task: short answers about sixty animals, judged by hidden rubrics.

A request is a verb and an animal ("Describe the otter, a mammal."). An answer is a series of short sentences.
The contents of a good answer depend on the verb and the animal's class and are stated nowhere: the policy has
to learn them from rewards. Two criteria require sentences that the policy hardly ever writes.
"""

from __future__ import annotations

import csv
import math
import random
from dataclasses import dataclass
from pathlib import Path

VERBS = ("Describe", "Introduce", "Explain", "Summarize", "Present", "Sketch")
FACTS = {
    "food": "It eats {}.",
    "home": "It lives in {}.",
    "color": "It is {}.",
    "region": "It comes from {}.",
    "active": "It wakes at {}.",
    "young": "It raises {}.",
    "talent": "It can {}.",
}
PHRASES = {
    "greeting": "Hello, dear reader!",
    "filler": "Animals are truly wonderful.",
    "caution": "Never feed it yourself.",
    "tip": "Watch it very quietly.",
    "advert": "Visit our zoo today!",
    "hedge": "I may be wrong.",
    "thanks": "Thanks for asking!",
}
ORDER = ("greeting", *FACTS, "filler", "caution", "tip", "advert", "hedge", "thanks")
COMMON = ("food", "home", "color", "region", "active", "young")
RARE = ("talent", "greeting", "caution", "tip", "thanks")
PITFALLS = ("filler", "advert", "hedge")
CRITERIA = {
    "food": "Says that it eats {}.",
    "home": "Says that it lives in {}.",
    "color": "Says that it is {}.",
    "region": "Says that it comes from {}.",
    "active": "Says that it wakes at {}.",
    "young": "Says that it raises {}.",
    "talent": "Says that it can {}.",
    "greeting": "Opens with a greeting.",
    "caution": "Warns never to feed it.",
    "tip": "Tells the reader to watch quietly.",
    "thanks": "Thanks the reader.",
    "filler": "Contains empty praise.",
    "advert": "Advertises a zoo.",
    "hedge": "Sounds unsure.",
    "length": "Uses at most {} words.",
}

Row = dict[str, object]


@dataclass(frozen=True)
class Animal:
    name: str
    kind: str
    facts: dict[str, str]


def load_animals() -> list[Animal]:
    with (Path(__file__).parent / "animals.csv").open(encoding="utf-8") as file:
        return [
            Animal(row["name"], row["class"], {fact: row[fact] for fact in FACTS})
            for row in csv.DictReader(file)
        ]


def request(verb: str, animal: Animal) -> str:
    article = "an" if animal.kind[0] in "ai" else "a"
    return f"{verb} the {animal.name}, {article} {animal.kind}."


def sentence(clause: str, value: str = "") -> str:
    return FACTS[clause].format(value) if clause in FACTS else PHRASES[clause]


def criterion(clause: str, weight: float, value: str | int = "") -> Row:
    """Returns a rubric row. For a fact, `value` must be in the answer; for "length", it limits the words."""
    if clause == "length":
        check: Row = {"kind": "max_words", "count": value}
    else:
        check = {"kind": "contains", "text": sentence(clause, str(value)).rstrip(".!")}
    row: Row = {"id": clause, "text": CRITERIA[clause].format(value), "weight": weight, "check": check}
    return row | {"undesirable": True} if weight < 0 else row


def hidden_rubrics(kinds: list[str], seed: int) -> dict[tuple[str, str], list[tuple[str, float, int]]]:
    """Returns the clauses that count for each (verb, class), as (clause, weight, words).

    The verb decides which two facts are required, the class which two rare clauses. Each clause is required
    about equally often, so that no single answer suits all requests.
    """
    rng = random.Random(seed)
    common, seldom = rng.sample(COMMON, len(COMMON)), rng.sample(RARE, len(RARE))
    facts = {verb: [common[i], common[i - 1]] for i, verb in enumerate(VERBS)}
    rare = {kind: [seldom[2 * i % 5], seldom[(2 * i + 1) % 5]] for i, kind in enumerate(kinds)}
    rubrics = {}
    for verb in VERBS:
        for kind in kinds:
            wanted = facts[verb] + rare[kind]
            limit = 16 if rng.random() < 0.8 else 22
            rubrics[verb, kind] = [
                *((clause, float(rng.randint(3, 5)), 0) for clause in wanted),
                ("length", 6.0, limit),
                (rng.choice(PITFALLS), -float(rng.randint(2, 4)), 0),
            ]
    return rubrics


def task_rows(animals: list[Animal], seed: int) -> list[Row]:
    """Returns 360 rows in herl's native format; two animals per verb and class are held out."""
    kinds = list(dict.fromkeys(animal.kind for animal in animals))
    rubrics = hidden_rubrics(kinds, seed)
    rng = random.Random(seed + 1)
    rows: list[Row] = []
    for verb in VERBS:
        for kind in kinds:
            members = [animal for animal in animals if animal.kind == kind]
            held_out = rng.sample([animal.name for animal in members], 2)
            for animal in members:
                rubric = [
                    criterion(clause, weight, words or animal.facts.get(clause, ""))
                    for clause, weight, words in rubrics[verb, kind]
                ]
                row: Row = {
                    "id": f"{verb.lower()}-{animal.name}",
                    "messages": [{"role": "user", "content": request(verb, animal)}],
                    "rubric": rubric,
                    "meta": {"split": "heldout" if animal.name in held_out else "train"},
                }
                rows.append(row)
    return rows


# The base model's lessons: to answer, and to revise under criteria unrelated to the hidden rubrics.

INCLUDE = {
    "food": 0.6, "home": 0.6, "color": 0.55, "region": 0.5, "active": 0.45, "young": 0.45, "talent": 0.1,
    "greeting": 0.12, "filler": 0.3, "caution": 0.05, "tip": 0.05, "advert": 0.15, "hedge": 0.15,
    "thanks": 0.1,
}  # fmt: skip
# Random differences between the answers to verbs and classes, so that the policy learns to look at both.
TASTE = 0.7
RIGHT, RIGHT_WHEN_HARD, HARD_SHARE = 0.9, 0.35, 0.25
MEND = 0.75


class Teacher:
    """Writes the base model's lessons."""

    def __init__(self, animals: list[Animal], seed: int) -> None:
        self.animals = animals
        self.values = {fact: sorted({a.facts[fact] for a in animals}) for fact in FACTS}
        rng = random.Random(seed)
        kinds = sorted({animal.kind for animal in animals})
        self.taste = {
            (verb, kind, clause): rng.gauss(0, TASTE) + by_verb[verb, clause]
            for by_verb in [{(verb, clause): rng.gauss(0, TASTE) for verb in VERBS for clause in ORDER}]
            for verb in VERBS
            for kind in kinds
            for clause in ORDER
        }
        self.right = {
            (animal.name, fact): RIGHT_WHEN_HARD if rng.random() < HARD_SHARE else RIGHT
            for animal in animals
            for fact in FACTS
        }

    def answer(self, verb: str, animal: Animal, rng: random.Random) -> dict[str, str]:
        """Returns the clauses of a plain answer, in order: {clause: value, or "" for a phrase}."""
        said = {}
        for clause in ORDER:
            odds = INCLUDE[clause] / (1 - INCLUDE[clause]) * math.exp(self.taste[verb, animal.kind, clause])
            if rng.random() >= odds / (1 + odds):
                continue
            if clause in FACTS:
                right = rng.random() < self.right[animal.name, clause]
                said[clause] = animal.facts[clause] if right else rng.choice(self.values[clause])
            else:
                said[clause] = ""
        return said or {"food": animal.facts["food"]}

    def criteria(self, draft: dict[str, str], rng: random.Random) -> list[Row]:
        """Returns random criteria with random values, from which no fact and no rubric can be learned."""
        rows = []
        for clause in rng.sample(COMMON, rng.randint(1, 3)) + rng.sample(RARE, rng.randint(1, 3)):
            value = ""
            if clause in FACTS:
                keep = clause in draft and rng.random() < 0.5
                value = draft[clause] if keep else rng.choice(self.values[clause])
            rows.append(criterion(clause, float(rng.randint(3, 5)), value))
        if rng.random() < 0.85:
            rows.append(criterion("length", rng.choice([2.0, 6.0]), rng.choice([10, 13, 16, 16, 16, 22])))
        if rng.random() < 0.85:
            rows.append(criterion(rng.choice(PITFALLS), -float(rng.randint(2, 4))))
        return rows

    def revise(self, draft: dict[str, str], criteria: list[Row], rng: random.Random) -> dict[str, str]:
        """Returns a good but fallible revision: each missed criterion is fixed with probability `MEND`."""
        said = dict(draft)
        asked = {str(row["id"]) for row in criteria if float(row["weight"]) > 0}  # type: ignore[arg-type]
        for row in criteria:
            clause = str(row["id"])
            if clause == "length" or met(row, draft):
                continue
            if rng.random() < MEND:
                if row.get("undesirable"):
                    said.pop(clause, None)
                else:
                    said[clause] = value_of(row)
        limits = [row for row in criteria if row["id"] == "length"]
        if limits and rng.random() < MEND:
            spare = [c for c in (*PITFALLS, *reversed(ORDER)) if c not in asked]
            for clause in spare:
                if met(limits[0], said):
                    break
                said.pop(clause, None)
        return {clause: said[clause] for clause in ORDER if clause in said}


def value_of(row: Row) -> str:
    """Returns the value that a fact's criterion requires: the last word of its text."""
    return str(row["text"]).rstrip(".").split()[-1] if row["id"] in FACTS else ""


def text_of(said: dict[str, str]) -> str:
    return " ".join(sentence(clause, value) for clause, value in said.items())


def met(row: Row, said: dict[str, str]) -> bool:
    """Whether these clauses fulfill a criterion."""
    check = row["check"]
    assert isinstance(check, dict)
    if check["kind"] == "max_words":
        return len(text_of(said).split()) <= int(check["count"])
    return (str(check["text"]) in text_of(said)) != bool(row.get("undesirable"))
