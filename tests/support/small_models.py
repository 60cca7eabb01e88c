"""Tiny models of the architectures that most people train."""

import torch
from transformers import AutoConfig, AutoModelForCausalLM

from herl.models import shared_attention

SMALL = {
    "vocab_size": 1024,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


def model_of(kind, **settings):
    torch.manual_seed(0)
    config = AutoConfig.for_model(kind, **(SMALL | settings))
    model = AutoModelForCausalLM.from_config(config).eval()
    with torch.no_grad():  # weights so large that attention matters
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(8.0)
    shared_attention.install(model)
    return model


ARCHITECTURES = {
    "llama": {},
    "qwen2": {},
    "qwen3": {},
    "mistral": {"sliding_window": 9},
    "qwen3-sliding": {"use_sliding_window": True, "sliding_window": 7, "max_window_layers": 1},
    "gemma3_text": {"sliding_window": 8},
    "olmo2": {},
    "phi3": {"partial_rotary_factor": 1.0},
    "granite": {"logits_scaling": 4.0, "attention_multiplier": 0.3},
    "cohere": {"logit_scale": 0.25},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "smollm3": {},
}
