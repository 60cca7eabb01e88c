"""Generates prompts with verifiable instructions: everyday requests with one to three checks each.

There are thirty-four kinds of check, all judged by the IFEval and IFBench checkers. Held-out prompts use
kinds and topics that no training prompt has. A prompt depends only on (seed, split, index).
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Literal

from herl.data.datamodule import RubricDataModule
from herl.data.formats import instruction_criterion
from herl.errors import ConfigError
from herl.seeds import derive_seed
from herl.types import Rubric, Task

Split = Literal["train", "heldout"]
Draw = Callable[[random.Random, str], tuple[str, dict[str, Any]]]
"""(random numbers, keyword of the topic) -> (the instruction in words, arguments of its checker)."""


@dataclass(frozen=True, slots=True)
class Kind:
    """A kind of verifiable instruction. Kinds of the same family contradict or repeat each other."""

    instruction_id: str
    family: str
    draw: Draw


TOPICS: dict[Split, dict[str, tuple[str, ...]]] = {
    "train": {
        "baking bread at home": ("dough", "oven", "yeast"),
        "a rainy weekend": ("umbrella", "window", "blanket"),
        "learning to ride a bicycle": ("balance", "helmet", "pedal"),
        "growing tomatoes": ("soil", "water", "sunlight"),
        "a visit to the library": ("book", "shelf", "quiet"),
        "packing for a short trip": ("bag", "shoes", "list"),
        "caring for a cat": ("food", "toy", "sleep"),
        "the first day at a new job": ("team", "desk", "coffee"),
        "saving money every month": ("budget", "bank", "plan"),
        "a family breakfast": ("eggs", "juice", "table"),
        "walking in the forest": ("trees", "path", "birds"),
        "repairing a flat tire": ("wheel", "patch", "pump"),
        "planning a birthday party": ("cake", "guests", "music"),
        "sleeping better": ("bed", "light", "habit"),
        "a day at the beach": ("sand", "waves", "towel"),
        "cleaning the kitchen": ("sink", "sponge", "floor"),
        "learning a new language": ("words", "practice", "friend"),
        "choosing a present": ("gift", "box", "card"),
        "running for the first time": ("shoes", "breath", "park"),
        "winter evenings": ("snow", "fire", "tea"),
    },
    "heldout": {
        "cooking soup": ("pot", "carrot", "salt"),
        "a train journey": ("ticket", "station", "seat"),
        "painting a room": ("brush", "wall", "color"),
        "adopting a dog": ("walk", "leash", "bowl"),
        "studying for an exam": ("notes", "break", "focus"),
        "a picnic with friends": ("basket", "grass", "bread"),
    },
}

REQUESTS = (
    "Write a short note about {topic}.",
    "Give some advice on {topic}.",
    "Tell me about {topic}.",
    "Describe {topic} in a few words.",
    "Write a brief message to a friend about {topic}.",
    "What should one know about {topic}?",
)


def _plain(text: str) -> Draw:
    return lambda rng, keyword: (text, {})


def _count(text: str, argument: str, low: int, high: int, **fixed: Any) -> Draw:
    """An instruction with one number: {n} in the text, `argument` of the checker."""

    def draw(rng: random.Random, keyword: str) -> tuple[str, dict[str, Any]]:
        n = rng.randint(low, high)
        return text.format(n=n, keyword=keyword), {argument: n, **fixed}

    return draw


def _choice(text: str, argument: str, options: tuple[str, ...]) -> Draw:
    """An instruction with one word: {option} in the text, `argument` of the checker."""

    def draw(rng: random.Random, keyword: str) -> tuple[str, dict[str, Any]]:
        option = rng.choice(options)
        return text.format(option=option), {argument: option}

    return draw


def _keyword(text: str, argument: str, *, listed: bool = False, **fixed: Any) -> Draw:
    """An instruction about a keyword of the topic."""

    def draw(rng: random.Random, keyword: str) -> tuple[str, dict[str, Any]]:
        return text.format(keyword=keyword), {argument: [keyword] if listed else keyword, **fixed}

    return draw


def _letter(rng: random.Random, keyword: str) -> tuple[str, dict[str, Any]]:
    letter, n = rng.choice("bgkpvw"), rng.randint(3, 6)
    arguments = {"letter": letter, "let_frequency": n, "let_relation": "at least"}
    return f"Use the letter {letter} at least {n} times.", arguments


def _word_range(rng: random.Random, keyword: str) -> tuple[str, dict[str, Any]]:
    low = rng.choice((15, 20, 25, 30))
    return f"Use between {low} and {low + 15} words.", {"min_words": low, "max_words": low + 15}


def _nth_paragraph(rng: random.Random, keyword: str) -> tuple[str, dict[str, Any]]:
    text = f"Write 2 paragraphs with an empty line between them. The second starts with the word {keyword}."
    return text, {"num_paragraphs": 2, "nth_paragraph": 2, "first_word": keyword}


KINDS: dict[Split, tuple[Kind, ...]] = {
    "train": (
        Kind(
            "keywords:existence",
            "keyword",
            _keyword("Include the word {keyword}.", "keywords", listed=True),
        ),
        Kind(
            "keywords:forbidden_words",
            "keyword",
            _keyword("Do not use the word {keyword}.", "forbidden_words", listed=True),
        ),
        Kind("keywords:letter_frequency", "letter", _letter),
        Kind(
            "sentence:keyword",
            "keyword",
            _keyword("Use the word {keyword} in the first sentence.", "word", N=1),
        ),
        Kind(
            "length_constraints:number_sentences",
            "length",
            _count("Use fewer than {n} sentences.", "num_sentences", 3, 5, relation="less than"),
        ),
        Kind(
            "length_constraints:number_words",
            "length",
            _count("Use fewer than {n} words.", "num_words", 20, 60, relation="less than"),
        ),
        Kind(
            "count:unique_word_count",
            "length",
            _count("Use at least {n} different words.", "N", 20, 40),
        ),
        Kind(
            "length_constraints:number_paragraphs",
            "shape",
            _count("Write {n} paragraphs, separated by the line ***.", "num_paragraphs", 2, 3),
        ),
        Kind("length_constraints:nth_paragraph_first_word", "shape", _nth_paragraph),
        Kind(
            "detectable_format:number_bullet_lists",
            "shape",
            _count(
                "Answer with exactly {n} bullet points, each on a line that starts with *.",
                "num_bullets",
                2,
                4,
            ),
        ),
        Kind(
            "detectable_format:multiple_sections",
            "shape",
            _count(
                "Divide the answer into {n} sections, marked Section 1, Section 2 and so on.",
                "num_sections",
                2,
                3,
                section_spliter="Section",
            ),
        ),
        Kind("format:newline", "shape", _plain("Write each word on a line of its own.")),
        Kind(
            "detectable_content:number_placeholders",
            "content",
            _count(
                "Include at least {n} placeholders in square brackets, such as [name].",
                "num_placeholders",
                1,
                2,
            ),
        ),
        Kind(
            "detectable_content:postscript",
            "end",
            _choice(
                "Add a postscript at the end that starts with {option}",
                "postscript_marker",
                ("P.S.", "P.P.S"),
            ),
        ),
        Kind(
            "detectable_format:number_highlighted_sections",
            "mark",
            _count(
                "Highlight at least {n} phrases with asterisks, *like this*.",
                "num_highlights",
                1,
                3,
            ),
        ),
        Kind(
            "startend:end_checker",
            "end",
            _choice(
                "End with the exact words: {option}",
                "end_phrase",
                ("That is all.", "Have a nice day.", "Good luck!"),
            ),
        ),
        Kind("change_case:english_lowercase", "case", _plain("Use lowercase letters only.")),
        Kind("change_case:english_capital", "case", _plain("Use capital letters only.")),
        Kind("punctuation:no_comma", "comma", _plain("Do not use any commas.")),
        Kind(
            "count:conjunctions",
            "grammar",
            _count("Use at least {n} different coordinating conjunctions.", "small_n", 2, 3),
        ),
        Kind("count:pronouns", "grammar", _count("Use at least {n} pronouns.", "N", 2, 5)),
        Kind(
            "words:repeats",
            "repeat",
            _count("Do not use any word more than {n} times.", "small_n", 2, 4),
        ),
        Kind(
            "count:punctuation",
            "punctuation",
            _plain("Use every standard punctuation mark at least once."),
        ),
        Kind(
            "format:list",
            "shape",
            _choice(
                "Answer with a list whose items start with {option} in place of bullets.",
                "sep",
                ("...", "-"),
            ),
        ),
        Kind("format:emoji", "mark", _plain("Put an emoji at the end of every sentence.")),
        Kind(
            "detectable_format:constrained_response",
            "whole",
            _plain("Say one of: My answer is yes. My answer is no. My answer is maybe."),
        ),
        Kind(
            "combination:two_responses",
            "whole",
            _plain("Give two different answers, separated by ******."),
        ),
    ),
    "heldout": (
        Kind("startend:quotation", "end", _plain("Put the whole answer in double quotation marks.")),
        Kind(
            "detectable_format:title",
            "mark",
            _plain("Give the answer a title in double angular brackets, such as <<joy>>."),
        ),
        Kind("count:word_count_range", "length", _word_range),
        Kind(
            "keywords:frequency",
            "keyword",
            _keyword(
                "Use the word {keyword} at least twice.",
                "keyword",
                frequency=2,
                relation="at least",
            ),
        ),
        Kind(
            "change_case:capital_word_frequency",
            "case",
            _count(
                "Write at least {n} words in capital letters.",
                "capital_frequency",
                2,
                4,
                capital_relation="at least",
            ),
        ),
        Kind("count:numbers", "content", _count("Include exactly {n} numbers.", "N", 1, 3)),
        Kind("format:title_case", "case", _plain("Capitalize the first letter of every word.")),
    ),
}


def instruction_tasks(split: Split, size: int, seed: int = 0) -> list[Task]:
    """Returns `size` tasks of a split. A smaller set is a prefix of a larger one.

    Raises:
        ConfigError: size is negative.
    """
    if size < 0:
        raise ConfigError(f"data.{split}_size: expected at least 0, got {size}")
    return [_task(split, index, seed) for index in range(size)]


def verifiable_instructions(
    train_size: int = 512,
    heldout_size: int = 48,
    prompts_per_batch: int = 8,
    seed: int = 0,
    hidden_criteria: float = 0.0,
) -> RubricDataModule:
    """Returns generated training prompts, and held-out prompts of other kinds and topics.

    The held-out prompts do not depend on the seed, so all runs are compared on the same ones.
    """
    return RubricDataModule(
        instruction_tasks("train", train_size, seed),
        instruction_tasks("heldout", heldout_size),
        prompts_per_batch=prompts_per_batch,
        seed=seed,
        hidden_criteria=hidden_criteria,
    )


def _task(split: Split, index: int, seed: int) -> Task:
    rng = random.Random(derive_seed(seed, split, index, "instructions"))
    topic, keywords = rng.choice(list(TOPICS[split].items()))
    sentences = [rng.choice(REQUESTS).format(topic=topic)]
    criteria = []
    for kind in _draw_kinds(rng, split):
        text, kwargs = kind.draw(rng, rng.choice(keywords))
        sentences.append(text)
        criteria.append(instruction_criterion(kind.instruction_id, kwargs, text))
    return Task(
        id=f"{split}-{seed}-{index}",
        messages=({"role": "user", "content": " ".join(sentences)},),
        rubric=Rubric(criteria=tuple(criteria)),
        source="instructions",
        meta={"split": split, "topic": topic},
    )


def _draw_kinds(rng: random.Random, split: Split) -> list[Kind]:
    """Draws one to three kinds from different families."""
    chosen: list[Kind] = []
    for kind in rng.sample(KINDS[split], len(KINDS[split])):
        if len(chosen) == 3 or (chosen and rng.random() < 0.35):
            break
        if kind.family not in {other.family for other in chosen}:
            chosen.append(kind)
    return chosen
