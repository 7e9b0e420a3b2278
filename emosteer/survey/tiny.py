"""A small model of any type, from its configuration alone: plain sizes wherever the configuration has such a field."""

from __future__ import annotations

from typing import Any

# Whatever of these a configuration has; sizes that do not go together in some architecture make it "not built".
SIZES: dict[str, Any] = {
    "vocab_size": 96,
    "hidden_size": 32,
    "d_model": 32,
    "n_embd": 32,
    "intermediate_size": 48,
    "ffn_dim": 48,
    "d_ff": 48,
    "decoder_ffn_dim": 48,
    "encoder_ffn_dim": 48,
    "num_hidden_layers": 3,
    "num_layers": 3,
    "n_layer": 3,
    "n_layers": 3,
    "encoder_layers": 2,
    "decoder_layers": 3,
    "num_decoder_layers": 3,
    "num_attention_heads": 4,
    "num_heads": 4,
    "n_head": 4,
    "n_heads": 4,
    "encoder_attention_heads": 4,
    "decoder_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "d_kv": 8,
    "max_position_embeddings": 128,
    "n_positions": 128,
    "max_seq_len": 128,
    "initializer_range": 0.2,
    "word_embed_proj_dim": 32,
    "num_experts": 4,
    "num_local_experts": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "num_experts_per_tok": 2,
    "moe_intermediate_size": 16,
    "shared_expert_intermediate_size": 16,
    "moe_topk": 2,
    "moe_k": 2,
    "n_group": 1,
    "topk_group": 1,
    "first_k_dense_replace": 1,
    "num_nextn_predict_layers": 0,
    "q_lora_rank": 16,
    "kv_lora_rank": 8,
    "qk_rope_head_dim": 8,
    "qk_nope_head_dim": 8,
    "v_head_dim": 8,
    "rotary_dim": 4,
    "sliding_window": 6,
    "query_pre_attn_scalar": 8,
    "state_size": 8,
    "mamba_d_state": 8,
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_dt_rank": 4,
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
    "lru_width": 32,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}
VISION: dict[str, Any] = {
    "hidden_size": 16,
    "embed_dim": 16,
    "intermediate_size": 16,
    "num_hidden_layers": 2,
    "depth": 2,
    "num_attention_heads": 2,
    "num_heads": 2,
    "image_size": 16,
    "patch_size": 8,
    "out_hidden_size": 32,
}


def tiny_config(model_type: str) -> Any:
    """The configuration with small sizes.

    Raises:
        Exception: whatever a configuration raises that these sizes do not suit.
    """
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING

    return _small(CONFIG_MAPPING[model_type], SIZES)


def _small(kind: Any, sizes: dict[str, Any]) -> Any:
    plain = kind()
    given: dict[str, Any] = {}
    names = {*vars(plain), *getattr(kind, "attribute_map", {})}
    for name, value in sizes.items():
        # A field that is off stays off: whether a part is there is the architecture's own affair.
        if name in names and getattr(plain, name, None) is not None:
            given[name] = value
    if "kv_lora_rank" in given:  # latent attention: every head has keys of its own
        given |= (
            {"num_key_value_heads": given["num_attention_heads"]} if "num_key_value_heads" in given else {}
        )
    rope = vars(plain).get("rope_parameters")
    if isinstance(rope, dict) and "mrope_section" in rope:
        given["rope_parameters"] = {**rope, "mrope_section": [2, 1, 1]}
    depth = sizes["num_hidden_layers"]
    for name in ("layer_types", "layers_block_type", "mlp_layer_types", "block_types"):
        pattern = vars(plain).get(name)
        if isinstance(pattern, (list, tuple)) and pattern:
            given[name] = (list(dict.fromkeys(pattern)) * depth)[:depth]
    for name in getattr(kind, "sub_configs", None) or {}:
        if vars(plain).get(name) is None:
            continue
        text = "text" in name or "decoder" in name or "encoder" in name or "llm" in name
        inside = type(vars(plain)[name])
        given[name] = _small(inside, SIZES if text else VISION).to_dict() if inside is not dict else {}
    return kind(**given)
