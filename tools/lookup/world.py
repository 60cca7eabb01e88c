"""The lessons of the model `tiny_tools`: to answer questions, to call the tool, and to follow hindsight.

A lesson is about a product that is in no catalog, and its criteria are random: no figure and no rubric can be
learned from it.
"""

from __future__ import annotations

import json
import random
from collections.abc import Iterator
from dataclasses import dataclass

from herl.data.catalog import CLOSINGS, CRITERIA, FACTS, PHRASES, Product, question
from herl.environment.catalog import UNITS
from herl.hindsight.revision import RevisionBuilder
from herl.hindsight.told import ToldBuilder
from herl.hindsight.wording import listed
from herl.prompt_text import fill
from herl.types import Criterion

STARTS = (
    "Bal", "Bor", "Cam", "Cor", "Dal", "Den", "Dor", "Fal", "Fen", "Gar", "Gol", "Hal", "Hel", "Jor",
    "Kal", "Kel", "Lam", "Lor", "Mar", "Mel", "Mor", "Nal", "Nor", "Pel", "Pol", "Ral", "Ros", "Sal",
    "Sel", "Sol", "Tal", "Tor", "Val", "Vel", "Wal", "Zor",
)  # fmt: skip
ENDS = (
    "ba", "bin", "da", "den", "dix", "fa", "go", "gus", "ka", "kin", "la", "lis", "lo", "ma", "mi",
    "mon", "na", "nex", "no", "pa", "pix", "ra", "rem", "ro", "sa", "sil", "so", "ta", "tex", "ti",
    "to", "va", "vin", "vo", "xa", "zin",
)  # fmt: skip
KINDS = ("lamp", "kettle", "fan", "clock", "heater", "mixer", "radio", "scale")
PRODUCTS, HELD_OUT = 56, 16
MIN_FIGURE, MAX_FIGURE = 10, 99

LOOKS_UP, COPIES, CORRECTS = 0.3, 0.93, 0.06
"""How often an answer looks the figure up, then tells it rightly, and needs a second call."""
INCLUDE = {
    "greeting": 0.35, "source": 0.06, "delivery": 0.06, "reserve": 0.06, "manual": 0.06, "praise": 0.45,
    "advert": 0.2, "hedge": 0.25,
}  # fmt: skip
OBEYS = 0.8
"""How often an answer does what a criterion in its prompt asks for."""
UNDESIRABLE = ("praise", "advert", "hedge")
Message = dict[str, str]


@dataclass(frozen=True)
class Lesson:
    """A conversation; the model learns what the assistant says from the message `learned` on."""

    messages: list[Message]
    learned: int = 1


def names() -> list[str]:
    return [start + end for start in STARTS for end in ENDS]


def make_catalog(seed: int) -> list[dict[str, str]]:
    rng = random.Random(seed)
    chosen = rng.sample(names(), PRODUCTS)
    return [
        {
            "name": name,
            "kind": KINDS[place % len(KINDS)],
            "split": "train" if place < PRODUCTS - HELD_OUT else "heldout",
        }
        | {attribute: figure(rng) for attribute in FACTS}
        for place, name in enumerate(chosen)
    ]


def figure(rng: random.Random) -> str:
    return str(rng.randint(MIN_FIGURE, MAX_FIGURE))


class Teacher:
    """Writes lessons about products that are not in the catalog."""

    def __init__(self, catalog: list[dict[str, str]]) -> None:
        self.names = sorted(set(names()) - {row["name"] for row in catalog})
        self.templates = (RevisionBuilder().template, ToldBuilder().template)

    def plain(self, rng: random.Random) -> Lesson:
        name, attribute, asked = self._question(rng)
        said = {phrase for phrase, odds in INCLUDE.items() if rng.random() < odds}
        return self._lesson(rng, name, attribute, asked, said, rng.random() < LOOKS_UP, COPIES)

    def told(self, rng: random.Random) -> Lesson:
        """An answer whose prompt lists criteria: as met and missed, or as a rubric."""
        name, attribute, asked = self._question(rng)
        criteria = self._criteria(rng)
        if rng.random() < 0.5:
            met = [one for one in criteria if rng.random() < 0.5]
            missed = [one for one in criteria if one not in met]
            fields = {"request": asked, "met": listed(met), "missed": listed(missed)}
            prompt = fill(self.templates[0], fields)
        else:
            prompt = fill(self.templates[1], {"request": asked, "rubric": listed(criteria)})
        said = {phrase for phrase, odds in INCLUDE.items() if rng.random() < odds}
        looks, copies = rng.random() < LOOKS_UP, COPIES
        for one in criteria:
            if one.id == "words" or rng.random() >= OBEYS:
                continue
            if one.id in ("lookup", "value"):
                looks, copies = True, 1.0
            elif one.undesirable:
                said.discard(one.id)
            else:
                said.add(one.id)
        limits = [one for one in criteria if one.id == "words"]
        if limits and rng.random() < OBEYS:
            said = self._shortened(
                said, attribute, limits[0], {one.id for one in criteria if not one.undesirable}, rng
            )
        return self._lesson(rng, name, attribute, prompt, said, looks, copies)

    def _question(self, rng: random.Random) -> tuple[str, str, str]:
        name, attribute = rng.choice(self.names), rng.choice(list(FACTS))
        product = Product(name=name, kind=rng.choice(KINDS), split="", values={})
        return name, attribute, question(product, attribute, rng.randrange(2))

    def _criteria(self, rng: random.Random) -> list[Criterion]:
        """Returns two to six random criteria, in a random order."""
        closings = sorted(set(CLOSINGS.values()))
        pool = [
            "lookup",
            "value",
            "source",
            "words",
            "greeting",
            rng.choice(closings),
            rng.choice(UNDESIRABLE),
        ]
        chosen = rng.sample(pool, rng.randint(2, 6))
        return [
            Criterion(
                id=name,
                text=CRITERIA[name].format(rng.choice((8, 10, 12, 12, 14))),
                weight=float(rng.randint(2, 5)) * (-1 if name in UNDESIRABLE else 1),
                undesirable=name in UNDESIRABLE,
            )
            for name in chosen
        ]

    def _shortened(
        self, said: set[str], attribute: str, limit: Criterion, asked: set[str], rng: random.Random
    ) -> set[str]:
        """Leaves out what was not asked for until the answer is short enough."""
        most = int(limit.text.split()[-2])
        spare = sorted(said - asked)
        rng.shuffle(spare)
        while spare and len(answer(attribute, "10", said).split()) > most:
            said = said - {spare.pop()}
        return said

    def _lesson(
        self,
        rng: random.Random,
        name: str,
        attribute: str,
        prompt: str,
        said: set[str],
        looks: bool,
        copies: float,
    ) -> Lesson:
        messages: list[Message] = [{"role": "user", "content": prompt}]
        value, learned = figure(rng), 1
        if looks:
            if rng.random() < CORRECTS:  # a slip, which is not learned, and its mending
                slip = rng.choice(self.names)
                messages += [_said(call(slip, attribute)), _tool(f"No {slip}.")]
                learned = len(messages)
            messages += [_said(call(name, attribute)), _tool(f"{value} {UNITS[attribute]}")]
            value = value if rng.random() < copies else figure(rng)
        return Lesson([*messages, _said(answer(attribute, value, said))], learned)


def call(name: str, attribute: str) -> str:
    wanted = {"name": "lookup", "arguments": {"name": name, "attribute": attribute}}
    return f"<tool_call>{json.dumps(wanted)}</tool_call>"


def answer(attribute: str, value: str, said: set[str]) -> str:
    parts = {"greeting": PHRASES["greeting"], "": FACTS[attribute].format(value)} | PHRASES
    return " ".join(text for name, text in parts.items() if not name or name in said)


def texts(lessons: list[Lesson]) -> Iterator[str]:
    for lesson in lessons:
        yield "\n".join(message["content"] for message in lesson.messages)


def _said(text: str) -> Message:
    return {"role": "assistant", "content": text}


def _tool(text: str) -> Message:
    return {"role": "tool", "content": text}
