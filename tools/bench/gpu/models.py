"""Random models with the shapes of real ones, written once to a folder that all sections share."""

from __future__ import annotations

import os
import tempfile
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForCausalLM, AutoTokenizer

from gpu.bench import Bench
from herl.models.pretrained import PretrainedModel

QWEN = {"vocab_size": 151936, "max_position_embeddings": 32768}
Q05 = QWEN | {
    "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24, "num_attention_heads": 14,
    "num_key_value_heads": 2, "tie_word_embeddings": True,
}  # fmt: skip
SHAPES: dict[str, dict[str, Any]] = {
    "0.5b": Q05,
    "0.5b, 2 layers": Q05 | {"num_hidden_layers": 2},
    "0.5b, 2 layers, window": Q05
    | {"num_hidden_layers": 2, "use_sliding_window": True, "sliding_window": 100, "max_window_layers": 1},
    "1.5b": QWEN
    | {
        "hidden_size": 1536, "intermediate_size": 8960, "num_hidden_layers": 28, "num_attention_heads": 12,
        "num_key_value_heads": 2, "tie_word_embeddings": True,
    },
    "7b, 8 layers": QWEN
    | {
        "hidden_size": 3584, "intermediate_size": 18944, "num_hidden_layers": 8, "num_attention_heads": 28,
        "num_key_value_heads": 4, "tie_word_embeddings": False,
    },
    "135m": {
        "vocab_size": 49152, "hidden_size": 576, "intermediate_size": 1536, "num_hidden_layers": 30,
        "num_attention_heads": 9, "num_key_value_heads": 3, "max_position_embeddings": 8192,
        "tie_word_embeddings": True,
    },
}  # fmt: skip
SMALL = {
    "vocab_size": 1024, "hidden_size": 64, "intermediate_size": 128, "num_hidden_layers": 2,
    "num_attention_heads": 2, "num_key_value_heads": 1,
}  # fmt: skip
"""Replaces a shape's sizes on a CPU."""
SMALL_WINDOW = 7


def write(bench: Bench) -> None:
    """Section: writes all models, so that none has to be written during a timing."""
    for name in SHAPES:
        folder(bench, name)


def folder(bench: Bench, name: str) -> str:
    """Returns a model's folder, with bfloat16 weights and a tokenizer; writes it if it does not exist."""
    path = bench.scratch / "models" / name.replace(", ", "-").replace(" ", "-")
    if path.exists():
        return str(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(_tokenizer_folder(bench.tokenizer))
    shape = SHAPES[name] | ({} if bench.full else SMALL)
    if "sliding_window" in shape and not bench.full:
        shape |= {"sliding_window": SMALL_WINDOW}
    shape |= {"vocab_size": max(shape["vocab_size"], len(tokenizer))}
    ends = {"bos_token_id": 1, "eos_token_id": tokenizer.eos_token_id, "pad_token_id": tokenizer.eos_token_id}
    config = AutoConfig.for_model("llama" if name == "135m" else "qwen2", **shape, **ends)
    torch.manual_seed(0)
    with torch.device(bench.device):
        model = AutoModelForCausalLM.from_config(config, dtype=torch.bfloat16)
    unfinished = tempfile.mkdtemp(dir=path.parent)
    model.save_pretrained(unfinished)
    tokenizer.save_pretrained(unfinished)
    try:
        os.rename(unfinished, path)
    except OSError:  # another section was faster
        if not path.exists():
            raise
    return str(path)


def _tokenizer_folder(name: str) -> str:
    given = Path(name).expanduser()
    return str(given) if given.is_dir() else PretrainedModel(path=name).source()


def load(bench: Bench, name: str) -> Any:
    """Returns a model, on the device, as a run would train it."""
    model = PretrainedModel(path=folder(bench, name), compile=bench.full)
    return model.load().to(bench.device).train()
