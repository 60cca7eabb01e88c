"""SmolLM2-135M-Instruct from a GGUF file: weights are dequantized (Q4_1) to float32, as a plain folder."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaConfig, LlamaForCausalLM
from transformers.utils import logging

GGUF = "SmolLM2-135M-Instruct.Q4_1.gguf"


def convert(folder: Path, out: Path) -> None:
    """Writes the model and tokenizer of `folder`/GGUF to `out`, for transformers and vLLM."""
    logging.disable_progress_bar()
    loaded = AutoModelForCausalLM.from_pretrained(folder, gguf_file=GGUF, dtype=torch.float32)
    settings = loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):  # only true of the GGUF file
        settings.pop(key, None)
    config = LlamaConfig(**settings)
    plain = LlamaForCausalLM(config)  # a model loaded from GGUF cannot be saved
    plain.load_state_dict(loaded.state_dict())
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(out)
    AutoTokenizer.from_pretrained(folder, gguf_file=GGUF).save_pretrained(out)
