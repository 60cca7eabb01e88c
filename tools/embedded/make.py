"""Makes the contents of herl/assets from fixed seeds: the task `animals.jsonl` and the chat model `tiny`.

    python tools/embedded/make.py [--steps 1800]

The model is a three-layer Llama that is taught to answer and to revise (world.py), in about half an hour on
two cores.
"""

from __future__ import annotations

import argparse
import json
import random
from collections.abc import Callable
from pathlib import Path

from tiny import SPECIAL, chat_tokenizer, make_model, train
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast
from world import ORDER, VERBS, Animal, Row, Teacher, load_animals, met, request, task_rows, text_of

from herl.hindsight.revision import RevisionBuilder
from herl.hindsight.wording import listed
from herl.prompt_text import fill
from herl.types import Criterion

ASSETS = Path(__file__).parents[2] / "herl" / "assets"
WORLD_SEED, TEACHER_SEED, LESSON_SEED = 7, 3, 11
CHAT_TEMPLATE = (
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
Lesson = tuple[str, str]
"""(text of the user message, answer)"""


def plain_lesson(teacher: Teacher, rng: random.Random) -> Lesson:
    verb, animal = rng.choice(VERBS), rng.choice(teacher.animals)
    return request(verb, animal), text_of(teacher.answer(verb, animal, rng))


def revision_lesson(teacher: Teacher, rng: random.Random) -> Lesson:
    verb, animal = rng.choice(VERBS), rng.choice(teacher.animals)
    draft = teacher.answer(verb, animal, rng)
    rows = teacher.criteria(draft, rng)
    prompt = revision_prompt(request(verb, animal), draft, rows)
    return prompt, text_of(teacher.revise(draft, rows, rng))


def revision_prompt(asked: str, draft: dict[str, str], rows: list[Row]) -> str:
    criteria = [(Criterion(**row), met(row, draft)) for row in rows]  # type: ignore[arg-type]
    fields = {
        "request": asked,
        "draft": text_of(draft),
        "met": listed([criterion for criterion, good in criteria if good]),
        "missed": listed([criterion for criterion, good in criteria if not good]),
    }
    return fill(RevisionBuilder(draft=True).template, fields)


def make_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1024, special_tokens=SPECIAL, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    return chat_tokenizer(tokenizer, CHAT_TEMPLATE)


def tokens(tokenizer: PreTrainedTokenizerFast, lesson: Lesson) -> tuple[list[int], list[bool]]:
    """Returns a lesson's tokens, and which of them are learned."""
    asked, answer = lesson
    chat = [{"role": "user", "content": asked}]
    context = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
    said = [*tokenizer.encode(answer), tokenizer.eos_token_id]
    return context + said, [False] * len(context) + [True] * len(said)


def lessons_of(
    teacher: Teacher, tokenizer: PreTrainedTokenizerFast
) -> dict[str, Callable[[], list[tuple[list[int], list[bool]]]]]:
    """Returns what draws the lessons of a step, by kind."""
    rng = random.Random(LESSON_SEED)
    return {
        "plain": lambda: [tokens(tokenizer, plain_lesson(teacher, rng)) for _ in range(48)],
        "revised": lambda: [tokens(tokenizer, revision_lesson(teacher, rng)) for _ in range(24)],
    }


def write_task(animals: list[Animal]) -> None:
    with (ASSETS / "animals.jsonl").open("w", encoding="utf-8") as file:
        for row in task_rows(animals, WORLD_SEED):
            file.write(json.dumps(row) + "\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=1800)
    parser.add_argument("--task-only", action="store_true", help="do not retrain the model")
    parser.add_argument("--out", type=Path, default=ASSETS / "tiny")
    arguments = parser.parse_args()
    ASSETS.mkdir(exist_ok=True)
    animals = load_animals()
    assert len(animals) == 60
    assert set(animals[0].facts) < set(ORDER)
    write_task(animals)
    if arguments.task_only:
        return
    teacher = Teacher(animals, TEACHER_SEED)
    rng = random.Random(0)
    corpus = [f"{asked}\n{answer}" for asked, answer in (revision_lesson(teacher, rng) for _ in range(4000))]
    tokenizer = make_tokenizer([*corpus, "user assistant system"])
    print("vocabulary", len(tokenizer), *(len(tokenizer.encode(text)) for text in corpus[:4]))
    model = make_model(tokenizer, LESSON_SEED)
    print("parameters", model.num_parameters())
    train(model, lessons_of(teacher, tokenizer), steps=arguments.steps, lr=3e-3, report_every=50)
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
