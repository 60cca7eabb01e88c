"""Makes the catalog and the chat model `tiny_tools` in herl/assets, from fixed seeds.

    python tools/lookup/make.py [--steps 800]

The model has the size of tools/embedded's, and another tokenizer. It first learns to copy, from random
tokens that come twice: without that, lessons alone did not teach it to repeat a name that it had never seen.
Then it is taught to answer, to call the tool and to follow hindsight (world.py). It takes a quarter of an
hour on one core. The weights are stored in float16.
"""

from __future__ import annotations

import argparse
import csv
import random
import time
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from world import Lesson, Teacher, make_catalog, texts

ASSETS = Path(__file__).parents[2] / "herl" / "assets"
CATALOG_SEED, LESSON_SEED = 5, 13
CHAT_TEMPLATE = (
    "{% if tools %}<|im_start|>system\nTools: {% for tool in tools %}{{ tool.function.name }}"
    "({{ tool.function.parameters.properties | join(', ') }}){% if not loop.last %}, {% endif %}{% endfor %}"
    "<|im_end|>\n"
    "{% endif %}"
    "{% for message in messages %}<|im_start|>{{ message['role'] }}\n{{ message['content'] }}<|im_end|>\n"
    "{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TOOLS = [
    {
        "type": "function",
        "function": {"name": "lookup", "parameters": {"properties": {"name": {}, "attribute": {}}}},
    }
]
SHOWS_TOOLS = 0.9
"""Share of lessons whose prompt names the tool."""


def make_tokenizer(corpus: list[str]) -> PreTrainedTokenizerFast:
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    tags = [AddedToken(tag, special=False, normalized=False) for tag in ("<tool_call>", "</tool_call>")]
    trainer = trainers.BpeTrainer(
        vocab_size=1022, special_tokens=special, initial_alphabet=pre_tokenizers.ByteLevel.alphabet()
    )
    tokenizer.train_from_iterator(corpus, trainer)
    tokenizer.add_tokens(tags)
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
        vocab_size=1024,
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


def tokens(tokenizer: PreTrainedTokenizerFast, lesson: Lesson, tools: bool) -> tuple[list[int], list[bool]]:
    """Returns a lesson's tokens, and which of them are learned."""
    ids: list[int] = []
    learned: list[bool] = []
    for place, message in enumerate(lesson.messages):
        if message["role"] != "assistant":
            continue
        shown = tokenizer.apply_chat_template(
            lesson.messages[:place],
            tools=TOOLS if tools else None,
            add_generation_prompt=True,
            tokenize=False,
        )
        context = tokenizer.encode(shown)
        said = [*tokenizer.encode(message["content"]), tokenizer.eos_token_id]
        assert context[: len(ids)] == ids
        learned += [False] * (len(context) - len(ids)) + [place >= lesson.learned] * len(said)
        ids = context + said
    return ids, learned


def lesson_loss(model: LlamaForCausalLM, rows: list[tuple[list[int], list[bool]]]) -> torch.Tensor:
    width = max(len(ids) for ids, _ in rows)
    input_ids = torch.zeros((len(rows), width), dtype=torch.long)
    keep = torch.zeros((len(rows), width), dtype=torch.bool)
    for i, (ids, learned) in enumerate(rows):
        input_ids[i, : len(ids)] = torch.tensor(ids)
        keep[i, : len(ids)] = torch.tensor(learned)
    hidden = model.model(input_ids=input_ids).last_hidden_state[:, :-1]
    return torch.nn.functional.cross_entropy(
        model.lm_head(hidden[keep[:, 1:]]), input_ids[:, 1:][keep[:, 1:]]
    )


def learn_to_copy(model: LlamaForCausalLM, steps: int) -> None:
    """Trains on random tokens, some others, and the first ones again. Only the repetition is learned."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.98), weight_decay=0.01)
    drawn = torch.Generator().manual_seed(LESSON_SEED)
    rng = random.Random(LESSON_SEED)
    for step in range(steps):
        for group in optimizer.param_groups:
            group["lr"] = 1e-3 * min(1.0, (step + 1) / 50)
        length, between = rng.randrange(4, 24), rng.randrange(24)
        first = torch.randint(3, model.config.vocab_size, (64, length + between), generator=drawn)
        input_ids = torch.cat([first, first[:, :length]], 1)
        hidden = model.model(input_ids=input_ids).last_hidden_state[:, length + between : -1]
        loss = torch.nn.functional.cross_entropy(
            model.lm_head(hidden).flatten(0, 1), first[:, 1:length].flatten()
        )
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        if step % 100 == 0 or step == steps - 1:
            print(f"copying, step {step}  loss {loss:.3f}", flush=True)


def train(model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, teacher: Teacher, steps: int) -> None:
    optimizer = torch.optim.AdamW(model.parameters(), lr=2e-3, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=2e-3, total_steps=steps, pct_start=0.05)
    rng = random.Random(LESSON_SEED)
    started = time.monotonic()
    for step in range(steps):
        losses = []
        for lesson, number in ((teacher.plain, 32), (teacher.told, 32)):
            rows = [tokens(tokenizer, lesson(rng), rng.random() < SHOWS_TOOLS) for _ in range(number)]
            losses.append(lesson_loss(model, rows))
            losses[-1].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % 25 == 0 or step == steps - 1:
            plain, told = losses
            seconds = time.monotonic() - started
            print(f"step {step}  plain {plain:.3f}  told {told:.3f}  {seconds:.0f} s", flush=True)


def write_catalog(rows: list[dict[str, str]]) -> None:
    with (ASSETS / "catalog.csv").open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--steps", type=int, default=800)
    parser.add_argument("--copying-steps", type=int, default=1100)
    parser.add_argument("--catalog-only", action="store_true", help="do not train the model")
    parser.add_argument("--out", type=Path, default=ASSETS / "tiny_tools")
    arguments = parser.parse_args()
    rows = make_catalog(CATALOG_SEED)
    write_catalog(rows)
    if arguments.catalog_only:
        return
    teacher, rng = Teacher(rows), random.Random(0)
    lessons = [write(rng) for _ in range(3000) for write in (teacher.plain, teacher.told)]
    tokenizer = make_tokenizer(
        [*texts(lessons), "user assistant system tool", "Tools: lookup(name, attribute)"]
    )
    model = make_model(tokenizer)
    for lesson in lessons[:4]:
        ids, learned = tokens(tokenizer, lesson, True)
        print(len(ids), sum(learned), tokenizer.decode(ids), sep="\n")
    print("vocabulary", len(tokenizer), "parameters", model.num_parameters(), flush=True)
    learn_to_copy(model, arguments.copying_steps)
    train(model, tokenizer, teacher, arguments.steps)
    model.to(torch.float16).save_pretrained(arguments.out)
    tokenizer.save_pretrained(arguments.out)


if __name__ == "__main__":
    main()
