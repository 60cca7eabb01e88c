"""Tiny random models of many architectures, for tests that apply to all of them."""

from copy import deepcopy

import torch
from transformers import AutoConfig

from herl.models.pretrained import auto_class, choose_attention, freeze_other_media

SIZES = {
    "vocab_size": 1024, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 2,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 512,
    "bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0,
}  # fmt: skip
HEAD = {"head_dim": 8}
WINDOW = {"sliding_window": 8}
ALTERNATING = WINDOW | {"layer_types": ["sliding_attention", "full_attention"]}
MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_d_state": 8,
    "mamba_n_groups": 1,
    "mamba_chunk_size": 16,
}
GPT2 = {"n_embd": 32, "n_layer": 2, "n_head": 4, "n_positions": 512}
DELTA = HEAD | {
    "linear_num_value_heads": 4, "linear_num_key_heads": 2, "linear_key_head_dim": 8, "linear_value_head_dim": 8,
    "layer_types": ["linear_attention", "full_attention"],
}  # fmt: skip
EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "first_k_dense_replace": 1,
}
VISION = {
    "hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "head_dim": 8,
    "image_size": 16, "patch_size": 4,
}  # fmt: skip
PATCHES = {
    "depth": 1, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 4, "out_hidden_size": 32,
    "deepstack_visual_indexes": [0], "num_position_embeddings": 16,
}  # fmt: skip

# name -> settings; a suffix after a dash only distinguishes two models of one type
ARCHITECTURES = {
    "apertus": {},
    "arcee": {},
    "bamba": MAMBA2 | {"attn_layer_indices": [1]},
    "biogpt": {},
    "bloom": {"n_layer": 2, "n_head": 4},
    "codegen": GPT2 | {"rotary_dim": 4},
    "cohere": {},
    "cohere2": ALTERNATING,
    "deepseek_v3": ROUTED | {
        "kv_lora_rank": 8, "q_lora_rank": 8, "qk_rope_head_dim": 4, "qk_nope_head_dim": 4, "v_head_dim": 8,
        "n_group": 2, "topk_group": 1, "num_key_value_heads": 4,
    },
    "doge": {},
    "dots1": HEAD | ROUTED | {"n_group": 1, "topk_group": 1, "n_shared_experts": 1},
    "ernie4_5": HEAD,
    "ernie4_5_moe": EXPERTS | {"moe_num_experts": 4, "moe_k": 2},
    "exaone4": ALTERNATING | {"sliding_window_pattern": 2},
    "falcon": {"alibi": False, "new_decoder_architecture": False},
    "falcon-alibi": {"alibi": True, "new_decoder_architecture": False},
    "falcon_h1": HEAD | MAMBA2 | {"mamba_d_ssm": 32, "mamba_n_heads": 4},
    "falcon_mamba": {"state_size": 8},
    "gemma": HEAD,
    "gemma2": HEAD | WINDOW | {"query_pre_attn_scalar": 8},
    "gemma3_text": HEAD | ALTERNATING | {"query_pre_attn_scalar": 8},
    "gemma3": {
        "text_config": SIZES | HEAD | ALTERNATING | {"query_pre_attn_scalar": 8, "model_type": "gemma3_text"},
        "vision_config": VISION | {"model_type": "siglip_vision_model"}, "mm_tokens_per_image": 4,
    },
    "gemma3n_text": HEAD | ALTERNATING | {
        "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": 1024, "num_kv_shared_layers": 0,
        "laurel_rank": 4, "altup_num_inputs": 2, "activation_sparsity_pattern": [0.0, 0.0], "intermediate_size": [48, 48],
    },
    "glm": HEAD,
    "glm4": HEAD,
    "glm4_moe": HEAD | ROUTED | {"n_group": 1, "topk_group": 1},
    "gpt2": GPT2,
    "gpt_bigcode": GPT2,
    "gpt_neo": {"max_position_embeddings": 128, "num_layers": 2, "num_heads": 4, "window_size": 8, "attention_types": [[["global", "local"], 1]]},
    "gpt_neox": {},
    "gpt_oss": HEAD | ALTERNATING | {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gptj": GPT2 | {"rotary_dim": 4},
    "granite": {"logits_scaling": 2.0},
    "granitemoe": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "granitemoehybrid": MAMBA2 | {
        "layer_types": ["mamba", "attention"], "layers_block_type": ["mamba", "attention"],
        "num_local_experts": 2, "num_experts_per_tok": 1, "shared_intermediate_size": 16,
    },
    "granite_swa": ALTERNATING,
    "hunyuan_v1_dense": HEAD,
    "jamba": {
        "num_experts": 2, "num_experts_per_tok": 1, "attn_layer_period": 2, "attn_layer_offset": 1,
        "expert_layer_period": 2, "expert_layer_offset": 1, "use_mamba_kernels": False, "mamba_d_state": 8,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"], "conv_L_cache": 3, "block_multiple_of": 8},
    "llama": {},
    "llama4_text": HEAD | {
        "attention_chunk_size": 8, "num_local_experts": 2, "intermediate_size_mlp": 48, "interleave_moe_layer_step": 1,
        "layer_types": ["chunked_attention", "full_attention"],
    },
    "mamba": {"state_size": 8},
    "mamba2": {"state_size": 8, "num_heads": 8, "head_dim": 8, "expand": 2, "n_groups": 1, "chunk_size": 16},
    "minimax": HEAD | {"num_local_experts": 2, "layer_types": ["linear_attention", "full_attention"], "block_size": 16},
    "ministral": HEAD | ALTERNATING,
    "mistral": HEAD | WINDOW,
    "mistral-full": HEAD | {"sliding_window": None},
    "mistral3": {
        "text_config": SIZES | HEAD | {"sliding_window": None, "model_type": "mistral"},
        "vision_config": VISION | {"model_type": "pixtral"}, "image_token_index": 10,
    },
    "mixtral": {"num_local_experts": 4, "sliding_window": None},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 2, "max_seq_len": 512},
    "nanochat": {},
    "nemotron": {},
    "nemotron_h": {
        "hybrid_override_pattern": "M*", "mamba_num_heads": 8, "mamba_head_dim": 8, "ssm_state_size": 8,
        "n_groups": 1, "head_dim": 8, "chunk_size": 16,
    },
    "olmo": {},
    "olmo2": {},
    "olmo3": ALTERNATING,
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "opt-projected": {"ffn_dim": 48, "word_embed_proj_dim": 16, "do_layer_norm_before": False},
    "persimmon": {},
    "phi": {},
    "phi3": {},
    "qwen2": {},
    "qwen2-sliding": {"use_sliding_window": True, "sliding_window": 8, "max_window_layers": 1},
    "qwen3": HEAD,
    "qwen3_5_text": DELTA,
    "qwen3_moe": HEAD | EXPERTS,
    "qwen3_vl": {
        "text_config": SIZES | HEAD | {
            "model_type": "qwen3_vl_text",
            "rope_parameters": {"rope_type": "default", "mrope_section": [2, 1, 1], "rope_theta": 1e4},
        },
        "vision_config": PATCHES,
        "image_token_id": 10, "video_token_id": 11, "vision_start_token_id": 12, "vision_end_token_id": 13,
    },
    "qwen3_next": DELTA | EXPERTS | {"shared_expert_intermediate_size": 16},
    "recurrent_gemma": HEAD | {"lru_width": 32, "attention_window_size": 8, "block_types": ["recurrent", "attention"]},
    "seed_oss": HEAD,
    "smollm3": {"no_rope_layer_interval": 2},
    "stablelm": {},
    "starcoder2": WINDOW,
    "vaultgemma": HEAD | WINDOW | {"query_pre_attn_scalar": 8},
    "xglm": {"d_model": 32, "ffn_dim": 48, "num_layers": 2, "attention_heads": 4},
    "zamba2": {
        "mamba_d_state": 8, "n_mamba_heads": 8, "mamba_headdim": 8, "mamba_ngroups": 1, "num_mem_blocks": 1,
        "layers_block_type": ["mamba", "hybrid"], "use_mamba_kernels": False, "chunk_size": 16, "hybrid_layer_ids": [1],
    },
}  # fmt: skip


def model_of(name, dtype=torch.float32, scale=4.0, more=()):
    """A random model with weights so large that attention matters, and no parameter at its neutral value."""
    torch.manual_seed(0)
    settings = deepcopy(ARCHITECTURES | dict(more))[name]
    sizes = {} if "text_config" in settings else SIZES
    config = AutoConfig.for_model(name.partition("-")[0], **(sizes | settings))
    model = auto_class(config).from_config(config, dtype=torch.float32).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            if parameter.dim() > 1:
                parameter.mul_(scale)
            else:
                parameter.add_(torch.randn_like(parameter), alpha=0.1)
    model.to(dtype)
    choose_attention(model)
    freeze_other_media(model)
    return model
