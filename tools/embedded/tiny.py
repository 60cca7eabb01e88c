"""Shared by the makers of the tiny models: their size, their tokenizer's frame, and their training loop."""

import time
from collections.abc import Callable

import torch
from tokenizers import Tokenizer
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

SPECIAL = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]


def chat_tokenizer(tokenizer: Tokenizer, chat_template: str) -> PreTrainedTokenizerFast:
    """Returns a tokenizer, whose first tokens are `SPECIAL`, as transformers loads it."""
    return PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        chat_template=chat_template,
        clean_up_tokenization_spaces=False,
        model_max_length=512,
    )


def make_model(tokenizer: PreTrainedTokenizerFast, seed: int) -> LlamaForCausalLM:
    """Returns a model of 430 752 random parameters."""
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
    torch.manual_seed(seed)
    return LlamaForCausalLM(config)


def answer_loss(model: LlamaForCausalLM, rows: list[tuple[list[int], list[bool]]]) -> torch.Tensor:
    """Returns the mean loss of the tokens that are learned.

    Args:
        model: The model.
        rows: Token ids, and which of them are learned.
    """
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


def train(
    model: LlamaForCausalLM,
    lessons: dict[str, Callable[[], list[tuple[list[int], list[bool]]]]],
    *,
    steps: int,
    lr: float,
    report_every: int,
) -> None:
    """Trains on the lessons of all kinds in each step, with one loss for each kind.

    Args:
        model: The model.
        lessons: By kind, what draws the rows of a step.
        steps: Optimizer steps.
        lr: The highest learning rate.
        report_every: Steps between two printed lines.
    """
    optimizer = torch.optim.AdamW(model.parameters(), lr=lr, betas=(0.9, 0.98), weight_decay=0.01)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, max_lr=lr, total_steps=steps, pct_start=0.05)
    started = time.monotonic()
    for step in range(steps):
        losses = {}
        for kind, draw in lessons.items():
            losses[kind] = answer_loss(model, draw())
            losses[kind].backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        schedule.step()
        if step % report_every == 0 or step == steps - 1:
            told = "  ".join(f"{kind} {loss:.3f}" for kind, loss in losses.items())
            print(f"step {step}  {told}  {time.monotonic() - started:.0f} s", flush=True)
