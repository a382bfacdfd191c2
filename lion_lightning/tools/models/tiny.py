"""Tiny configs of any type of causal LM, to build it with random weights in a moment."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from transformers import CONFIG_MAPPING
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING_NAMES

VOCABULARY = 96

SIZES: tuple[tuple[str, int], ...] = (
    (r"vocab_size$", VOCABULARY),
    (r"(num_.*layers|n_layers?|_layers|depth)$", 2),
    (r"(num_key_value_heads|num_kv_heads|n_head_kv)$", 2),
    (r"head_dim$", 8),
    (r"(num_.*heads|n_heads?|attention_heads)$", 4),
    (r"(hidden_size|d_model|n_embd|^dim|_dim|embedding_size|width)$", 32),
    (r"(intermediate_size|ffn_dim|d_ff|d_inner|ffn_hidden_size)$", 64),
    (r"(num_.*experts|n_routed_experts)$", 4),
    (r"(num_experts_per_tok|top_k|moe_topk)$", 2),
    (r"(max_position_embeddings|n_positions|max_seq_len)$", 256),
)
"""Largest value of each setting whose name matches; the first pattern that does counts."""


def model_types() -> list[str]:
    """All types of causal LM of the installed transformers."""
    return sorted(MODEL_FOR_CAUSAL_LM_MAPPING_NAMES)


def tiny_config(model_type: str) -> dict[str, Any]:
    """Config of a tiny model, as ``policy.config`` takes it.

    The type's default sizes are cut by :data:`SIZES`; :data:`SETTINGS` holds what has to fit together.

    Args:
        model_type: One of :func:`model_types`.
    """
    kind = CONFIG_MAPPING[model_type]
    defaults = kind().to_dict()
    config = {"model_type": model_type, **_shrunk(defaults), "pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
    # Larger than usual: activations near 0 would make norms ill-conditioned, and attention uniform, which hides errors.
    if "initializer_range" in defaults:
        config["initializer_range"] = 0.2
    if "is_decoder" in defaults:  # an encoder's causal half
        config["is_decoder"] = True
    for name, value in SETTINGS.get(model_type, {}).items():
        config[name] = {**config.get(name, {}), **value} if isinstance(value, dict) else value
    return config


def _shrunk(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The sizes among settings, cut; parts such as ``text_config`` keep their type."""
    small: dict[str, Any] = {}
    for name, value in settings.items():
        if isinstance(value, dict) and name.endswith("config"):
            small[name] = _shrunk(value) | {key: value[key] for key in ("model_type",) if key in value}
        elif isinstance(value, int) and not isinstance(value, bool):
            sizes = [size for pattern, size in SIZES if re.search(pattern, name)]
            if sizes:
                small[name] = min(value, sizes[0])
    return small


_LATENT = {
    "num_key_value_heads": 4,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "q_lora_rank": 16,
    "kv_lora_rank": 16,
}
_ROUTED = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "moe_intermediate_size": 32,
}
_ROPE = {"rope_type": "default", "rope_theta": 10000.0}

SETTINGS: dict[str, dict[str, Any]] = {
    "axk1": _LATENT | _ROUTED,
    "axk2": _LATENT | _ROUTED,
    "codegen": {"rotary_dim": 4},
    "cohere_compass_text": {
        "layer_types": ["sliding_attention", "full_attention"],
        "rope_parameters": {"sliding_attention": _ROPE, "full_attention": _ROPE},
    },
    "dbrx": {
        "attn_config": {"kv_n_heads": 2, "rope_theta": 10000.0, "clip_qkv": 8.0},
        "ffn_config": {"moe_num_experts": 4, "moe_top_k": 2, "ffn_hidden_size": 64},
    },
    "deepseek_v2": _LATENT | _ROUTED,
    "deepseek_v3": _LATENT | _ROUTED,
    "deepseek_v32": _LATENT | _ROUTED | {"index_topk": 64, "index_head_dim": 16},
    "dots1": _ROUTED | {"n_shared_experts": 1},
    "emu3": {"text_config": {"pad_token_id": 0}},
    "ernie4_5_moe": {
        "moe_num_experts": 4,
        "moe_k": 2,
        "moe_layer_start_index": 0,
        "moe_layer_end_index": 1,
        "moe_intermediate_size": 32,
    },
    "gemma3n_text": {
        "num_kv_shared_layers": 0,
        "layer_types": ["sliding_attention", "full_attention"],
        "activation_sparsity_pattern": [0.0, 0.0],
        "intermediate_size": [64, 64],
        "hidden_size_per_layer_input": 8,
    },
    "glm4_moe_lite": _LATENT | _ROUTED,
    "glm_moe_dsa": _LATENT | _ROUTED | {"index_topk": 64, "index_head_dim": 16},
    "gpt_neo": {"num_layers": 2, "attention_types": [[["global", "local"], 1]], "window_size": 16},
    "gptj": {"rotary_dim": 4},
    "hunyuan_v1_dense": {"head_dim": 8},
    "hunyuan_v1_moe": {"head_dim": 8},
    "kimi_linear": {
        "num_experts": 4,
        "num_experts_per_token": 2,
        "num_expert_group": 1,
        "topk_group": 1,
        "moe_intermediate_size": 32,
    },
    "lfm2": {"layer_types": ["conv", "full_attention"]},
    "lfm2_moe": {"layer_types": ["conv", "full_attention"], "num_dense_layers": 1},
    "longcat_flash": _LATENT
    | {"num_layers": 1, "head_dim": 8, "qk_head_dim": 16, "zero_expert_num": 2, "expert_ffn_hidden_size": 32},
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "expand": 2},
    "minicpm3": _LATENT,
    "ministral": {"head_dim": 8},
    "mllama": {"text_config": {"pad_token_id": 0, "cross_attention_layers": []}},
    "nemotron": {"num_key_value_heads": 2, "head_dim": 8},
    "nemotron_h": {
        "mamba_num_heads": 4,
        "mamba_head_dim": 16,
        "n_groups": 1,
        "ssm_state_size": 8,
        "n_routed_experts": 4,
        "moe_intermediate_size": 32,
        "moe_shared_expert_intermediate_size": 32,
    },
    "recurrent_gemma": {"lru_width": 32, "num_hidden_layers": 3},
    "reformer": {"axial_pos_embds_dim": [8, 24], "axial_pos_shape": [16, 16]},
    "xmod": {"default_language": "en_XX"},
    "youtu": _LATENT,
    "zamba": {
        "num_hidden_layers": 4,
        "layers_block_type": ["linear_attention", "hybrid", "linear_attention", "hybrid"],
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
        "mamba_dt_rank": 4,
        "mamba_d_state": 8,
    },
    "zamba2": {
        "layers_block_type": ["linear_attention", "hybrid"],
        "num_mem_blocks": 1,
        "n_mamba_heads": 8,
        "mamba_d_state": 8,
        "mamba_headdim": 8,
        "attention_hidden_size": 64,
        "attention_head_dim": 16,
    },
}
"""Settings of a type that must fit together, or without which its default is not a causal LM."""
