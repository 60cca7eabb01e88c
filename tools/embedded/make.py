"""Makes the contents of herl/assets from fixed seeds: the task `animals.jsonl` and the chat model `tiny`.

    python tools/embedded/make.py [--steps 1800]

The model is a three-layer Llama that is taught to answer and to revise (world.py), in about half an hour on
two cores.
"""

from __future__ import annotations

import argparse
import json
import random
import time
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
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
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=1024, special_tokens=special, initial_alphabet=alphabet)
    tokenizer.train_from_iterator(texts, trainer)
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=CHAT_TEMPLATE,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def make_model(tokenizer: PreTrainedTokenizerFast) -> LlamaForCausalLM:
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=96,
        intermediate_size=256,
        num_hidden_layers=3,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=512,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )
    torch.manual_seed(LESSON_SEED)
    return LlamaForCausalLM(config)


def lesson_loss(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, lessons: list[Lesson]
) -> torch.Tensor:
    rows, starts = [], []
    for asked, answer in lessons:
        chat = [{"role": "user", "content": asked}]
        context = tokenizer.apply_chat_template(chat, add_generation_prompt=True, return_dict=False)
        rows.append(context + tokenizer.encode(answer) + [tokenizer.eos_token_id])
        starts.append(len(context))
    width = max(map(len, rows))
    input_ids = torch.full((len(rows), width), tokenizer.pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for i, (row, start) in enumerate(zip(rows, starts, strict=True)):
        input_ids[i, : len(row)] = torch.tensor(row)
        labels[i, start : len(row)] = torch.tensor(row[start:])
    hidden = model.model(input_ids=input_ids).last_hidden_state[:, :-1]
    keep = labels[:, 1:] != -100
    return torch.nn.functional.cross_entropy(model.lm_head(hidden[keep]), labels[:, 1:][keep])


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, teacher: Teacher, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=3e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=3e-3, total_steps=steps, pct_start=0.05)
    rng = random.Random(LESSON_SEED)
    started = time.monotonic()
    for step in range(steps):
        plain = lesson_loss(model, tokenizer, [plain_lesson(teacher, rng) for _ in range(48)])
        plain.backward()
        revised = lesson_loss(model, tokenizer, [revision_lesson(teacher, rng) for _ in range(24)])
        revised.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 50 == 0 or step == steps - 1:
            seconds = time.monotonic() - started
            print(f"step {step}  plain {plain:.3f}  revised {revised:.3f}  {seconds:.0f} s", flush=True)


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
    model = make_model(tokenizer)
    print("parameters", model.num_parameters())
    train(model, tokenizer, teacher, arguments.steps)
    model.save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
