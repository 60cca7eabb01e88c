"""A GGUF file as a plain folder: weights are dequantized to float32, for transformers and vLLM."""

from __future__ import annotations

from pathlib import Path

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer
from transformers.utils import logging

HEAD, EMBEDDING = "lm_head.weight", "model.embed_tokens.weight"


def convert(file: Path, out: Path, *, tie: bool = False) -> None:
    """Writes the model and tokenizer of a GGUF file to a folder.

    Args:
        file: The GGUF file.
        out: The folder.
        tie: Whether the embedding becomes the head, for a model with tied weights whose file holds both: the
            head has more bits there.
    """
    logging.disable_progress_bar()
    loaded = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32)
    weights, settings = loaded.state_dict(), loaded.config.to_dict()
    for key in ("quantization_config", "_name_or_path"):  # only true of the GGUF file
        settings.pop(key, None)
    if tie:
        settings["tie_word_embeddings"] = True
        weights[EMBEDDING] = weights[HEAD]
    plain = type(loaded)(type(loaded.config)(**settings))  # a model loaded from GGUF cannot be saved
    plain.load_state_dict(weights)
    plain.generation_config = loaded.generation_config
    plain.save_pretrained(out)
    AutoTokenizer.from_pretrained(file.parent, gguf_file=file.name).save_pretrained(out)
