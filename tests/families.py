"""Tiny configs of 29 families of causal LMs, and each family's log-probs and gradients alone."""

from __future__ import annotations

from typing import Any

COMMON: dict[str, Any] = {
    "vocab_size": 101,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "max_position_embeddings": 256,
    "initializer_range": 0.1,  # large, so that attention is far from uniform and errors show
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
_DELTA_NET: dict[str, Any] = {
    "linear_num_value_heads": 4,
    "linear_num_key_heads": 2,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "num_hidden_layers": 4,  # three of linear attention, one of full attention
}
_EXPERTS: dict[str, Any] = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 32}
_GROUPED: dict[str, Any] = {
    "n_routed_experts": 4,
    "num_experts_per_tok": 2,
    "n_group": 1,
    "topk_group": 1,
    "moe_intermediate_size": 32,
    "first_k_dense_replace": 1,
}
_OWN: dict[str, dict[str, Any]] = {
    "gemma2": {"query_pre_attn_scalar": 8, "sliding_window": 4},
    "gemma3_text": {"query_pre_attn_scalar": 8, "sliding_window": 4},
    "qwen3_moe": _EXPERTS,
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "gemma4_text": {"vocab_size_per_layer_input": 101},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 4},
    "olmoe": {"num_experts": 4, "num_experts_per_tok": 2},
    "qwen3_next": {**_EXPERTS, "shared_expert_intermediate_size": 32, **_DELTA_NET},
    "qwen3_5_text": _DELTA_NET,
    "lfm2": {"block_dim": 32, "block_ff_dim": 64, "full_attn_idxs": [1]},
    "deepseek_v3": {
        **_GROUPED,
        "q_lora_rank": 16,
        "kv_lora_rank": 16,
        "qk_rope_head_dim": 8,
        "qk_nope_head_dim": 8,
        "v_head_dim": 8,
        "num_key_value_heads": 4,
    },
    "glm4_moe": _GROUPED,
    "falcon_h1": {
        "mamba_d_ssm": 32,
        "mamba_n_heads": 4,
        "mamba_d_head": 8,
        "mamba_d_state": 8,
        "mamba_n_groups": 1,
    },
    "mamba2": {"num_heads": 8, "head_dim": 8, "state_size": 8, "n_groups": 1, "expand": 2},
}
# fmt: off
NAMES = (
    "llama", "qwen2", "qwen3", "mistral", "gemma2", "gemma3_text", "gemma4_text", "phi3", "olmo2", "olmo3",
    "granite", "smollm3", "cohere2", "starcoder2", "gpt2", "gpt_neox", "glm4", "ministral3", "qwen3_moe", "mixtral",
    "gpt_oss", "olmoe", "deepseek_v3", "glm4_moe", "qwen3_next", "qwen3_5_text", "lfm2", "falcon_h1", "mamba2",
)
# fmt: on
MIXERS = ("qwen3_next", "qwen3_5_text", "lfm2", "falcon_h1", "mamba2")
"""Families with layers that mix tokens by something else than attention."""


def family(name: str, **changes: Any) -> dict[str, Any]:
    """Config of a tiny model of a family."""
    return {**COMMON, **_OWN.get(name, {}), "model_type": name, **changes}
