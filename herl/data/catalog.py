"""The task of `experiment=lookup`: questions about a shop's catalog, with a hidden rubric.

Names and figures are invented, so only the tool `herl.environment.catalog.lookup` can tell what a product
weighs or costs. The rubric is the same for every question but for its closing line, which depends on what was
asked. No criterion's text holds the figure: hindsight says that an answer was wrong, never what is right.
"""

from __future__ import annotations

import csv
import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from importlib.resources import files

from herl.data.datamodule import RubricDataModule
from herl.types import Criterion, Rubric, Task

QUESTIONS = {
    "weight": ("How heavy is the {}?", "What does the {} weigh?"),
    "width": ("How wide is the {}?", "What is the width of the {}?"),
    "price": ("How much is the {}?", "What does the {} cost?"),
    "stock": ("How many of the {} are left?", "Is the {} in stock?"),
    "power": ("How much power does the {} draw?", "What is the power of the {}?"),
    "warranty": ("How long is the warranty of the {}?", "What warranty has the {}?"),
}
"""Attribute -> ways to ask for it."""
FACTS = {
    "weight": "It weighs {} kg.",
    "width": "It is {} cm wide.",
    "price": "It costs {} euros.",
    "stock": "We have {} pieces.",
    "power": "It draws {} watts.",
    "warranty": "The warranty is {} months.",
}
"""Attribute -> a sentence that tells it."""
PHRASES = {
    "greeting": "Good day!",
    "source": "Source: our catalog.",
    "delivery": "Delivery is free.",
    "reserve": "Shall I reserve one?",
    "manual": "See our manual.",
    "praise": "A fine choice!",
    "advert": "Visit our shop today!",
    "hedge": "I may be wrong.",
}
"""What else an answer may say, in this order but for the fact, which follows the greeting."""
CLOSINGS = {
    "weight": "delivery",
    "width": "delivery",
    "price": "reserve",
    "stock": "reserve",
    "power": "manual",
    "warranty": "manual",
}
"""Attribute -> the phrase with which the house closes its answer."""
CRITERIA = {
    "lookup": "Looks the figure up before answering.",
    "value": "Gives the figure of the catalog.",
    "greeting": "Opens with a greeting.",
    "source": "Names the catalog as its source.",
    "delivery": "Says that delivery is free.",
    "reserve": "Offers to reserve one.",
    "manual": "Points to the manual.",
    "praise": "Praises the choice.",
    "advert": "Advertises the shop.",
    "hedge": "Sounds unsure.",
    "words": "Uses at most {} words.",
}
MAX_WORDS = 12


@dataclass(frozen=True, slots=True, kw_only=True)
class Product:
    """A row of the catalog."""

    name: str
    kind: str
    split: str
    """train or heldout"""
    values: Mapping[str, str]
    """Attribute -> figure."""


def products() -> list[Product]:
    """Returns the catalog."""
    text = files("herl").joinpath("assets", "catalog.csv").read_text(encoding="utf-8")
    return [
        Product(name=row["name"], kind=row["kind"], split=row["split"], values={a: row[a] for a in FACTS})
        for row in csv.DictReader(text.splitlines())
    ]


def catalog(
    prompts_per_batch: int = 16, tuning: bool = False, seed: int = 0, hidden_criteria: float = 0.0
) -> RubricDataModule:
    """Returns 240 training and 96 held-out questions; no question of training is about a held-out product.

    Args:
        prompts_per_batch: Prompts per rollout batch.
        tuning: Holds out every fourth training product instead, so that settings can be tuned without the
            real held-out ones.
        seed: Seed for the order of the prompts.
        hidden_criteria: Share of the criteria that only gold judges see (`herl.data.hidden`).
    """
    found = products()
    train = [one for one in found if one.split == "train"]
    heldout = [one for one in found if one.split == "heldout"]
    if tuning:
        heldout = train[::4]
        train = [one for place, one in enumerate(train) if place % 4]
    return RubricDataModule(
        _tasks(train),
        _tasks(heldout),
        prompts_per_batch=prompts_per_batch,
        seed=seed,
        hidden_criteria=hidden_criteria,
    )


def question(product: Product, attribute: str, way: int) -> str:
    """Returns one of the ways to ask for an attribute of a product."""
    return QUESTIONS[attribute][way].format(f'{product.kind} "{product.name}"')


def rubric(product: Product, attribute: str) -> Rubric:
    """Returns the hidden rubric of a question."""
    closing = CLOSINGS[attribute]
    asked = {"name": product.name, "attribute": attribute}
    figure = FACTS[attribute].format(product.values[attribute]).rstrip(".")
    return Rubric(
        criteria=(
            _criterion("lookup", 3.0, {"kind": "calls_tool", "tool": "lookup", "arguments": asked}),
            _criterion("value", 4.0, {"kind": "contains", "text": figure}),
            _criterion("source", 3.0, _says("source")),
            _criterion(closing, 3.0, _says(closing)),
            _criterion("words", 2.0, {"kind": "max_words", "count": MAX_WORDS}),
            _criterion("praise", -2.0, _says("praise")),
        )
    )


def _tasks(chosen: list[Product]) -> list[Task]:
    return [
        Task(
            id=f"{attribute}-{product.name.lower()}",
            messages=(
                {"role": "user", "content": question(product, attribute, _way(product.name, attribute))},
            ),
            rubric=rubric(product, attribute),
            meta={"split": product.split, "attribute": attribute},
        )
        for product in chosen
        for attribute in FACTS
    ]


def _way(name: str, attribute: str) -> int:
    return hashlib.sha256(f"{name} {attribute}".encode()).digest()[0] % 2


def _says(phrase: str) -> dict[str, str]:
    return {"kind": "contains", "text": PHRASES[phrase].rstrip(".!?")}


def _criterion(name: str, weight: float, check: Mapping[str, object]) -> Criterion:
    text = CRITERIA[name].format(MAX_WORDS)
    return Criterion(id=name, text=text, weight=weight, check=check, undesirable=weight < 0)
