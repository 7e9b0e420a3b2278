"""Tiny random models of many architectures, built from their configurations alone: nothing is downloaded."""

from __future__ import annotations

import torch

VOCABULARY = 96

COMMON = dict(
    vocab_size=VOCABULARY,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=3,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
    max_position_embeddings=128,
    initializer_range=0.2,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    tie_word_embeddings=False,
)

EXPERTS = dict(num_experts_per_tok=2, moe_intermediate_size=16)
MIXED_ATTENTION = dict(layer_types=["sliding_attention", "full_attention", "sliding_attention"])
VISION = dict(
    hidden_size=16,
    intermediate_size=16,
    num_hidden_layers=2,
    num_attention_heads=2,
    image_size=16,
    patch_size=8,
)

# Model type → what its configuration needs beside, or instead of, `COMMON`.
DECODERS: dict[str, dict] = {
    "llama": {},
    "mistral": {"sliding_window": 6},
    "mixtral": {"num_local_experts": 4, "num_experts_per_tok": 2},
    "qwen2": {},
    "qwen3": {},
    "qwen3_moe": {"num_experts": 4, **EXPERTS},
    "gemma": {},
    "gemma2": {"sliding_window": 6, "query_pre_attn_scalar": 8, **MIXED_ATTENTION},
    "gemma3_text": {"sliding_window": 6, "query_pre_attn_scalar": 8, **MIXED_ATTENTION},
    "phi": {},
    "phi3": {},
    "gpt2": {},
    "gpt_neox": {},
    "gptj": {"rotary_dim": 4},
    "gpt_bigcode": {},
    "opt": {"ffn_dim": 48, "word_embed_proj_dim": 32},
    "bloom": {},
    "falcon": {"head_dim": None},
    "mpt": {"d_model": 32, "n_heads": 4, "n_layers": 3, "max_seq_len": 128},
    "olmo2": {},
    "granite": {"residual_multiplier": 0.5},
    "stablelm": {},
    "cohere": {},
    "cohere2": {"sliding_window": 6, **MIXED_ATTENTION},
    "starcoder2": {},
    "nemotron": {},
    "glm4": {},
    "smollm3": {},
    "gpt_oss": {"num_local_experts": 4, "num_experts_per_tok": 2, "sliding_window": 6, **MIXED_ATTENTION},
    "deepseek_v3": {
        "n_routed_experts": 4,
        "n_group": 1,
        "topk_group": 1,
        "first_k_dense_replace": 1,
        "q_lora_rank": 8,
        "kv_lora_rank": 8,
        "qk_rope_head_dim": 4,
        "qk_nope_head_dim": 4,
        "v_head_dim": 8,
        "head_dim": 4,
        "num_key_value_heads": 4,
        **EXPERTS,
    },
    "mamba": {"state_size": 4, "expand": 2},
    "mamba2": {"state_size": 4, "expand": 2, "num_heads": 8, "n_groups": 2, "chunk_size": 8},
    "falcon_mamba": {"state_size": 4, "expand": 2},
    "recurrent_gemma": {"lru_width": 32, "attention_window_size": 6, "num_hidden_layers": 3},
    "rwkv": {"attention_hidden_size": 32, "context_length": 128},
    "jamba": {
        "num_experts": 2,
        "attn_layer_period": 3,
        "attn_layer_offset": 1,
        "use_mamba_kernels": False,
        "mamba_d_state": 4,
        "mamba_dt_rank": 4,
    },
}

MAMBA2 = {
    "mamba_n_heads": 8,
    "mamba_d_head": 8,
    "mamba_n_groups": 1,
    "mamba_d_state": 8,
    "mamba_chunk_size": 8,
}
DELTA = {
    "linear_num_key_heads": 2,
    "linear_num_value_heads": 4,
    "linear_key_head_dim": 8,
    "linear_value_head_dim": 8,
}
ALTERNATING = {"layer_types": ["linear_attention", "full_attention", "linear_attention"]}

# More whose blocks keep a state, or a state and keys by turns.
RECURRENT: dict[str, dict] = {
    **{
        name: DECODERS[name]
        for name in ("mamba", "mamba2", "falcon_mamba", "recurrent_gemma", "rwkv", "jamba")
    },
    "bamba": {**MAMBA2, "attn_layer_indices": [1]},
    "falcon_h1": {**MAMBA2, "mamba_d_ssm": 64},
    "lfm2": {"layer_types": ["conv", "full_attention", "conv"]},
    "qwen3_next": {
        "num_experts": 4,
        "shared_expert_intermediate_size": 16,
        **EXPERTS,
        **DELTA,
        **ALTERNATING,
    },
    "minimax": {"num_local_experts": 2, "num_experts_per_tok": 1, "block_size": 8, **ALTERNATING},
    "granitemoehybrid": {
        "layer_types": ["mamba", "attention", "mamba"],
        "num_local_experts": 2,
        "num_experts_per_tok": 1,
        "shared_intermediate_size": 16,
        **MAMBA2,
    },
    "nemotron_h": {
        "mamba_num_heads": 8,
        "mamba_head_dim": 8,
        "n_groups": 1,
        "ssm_state_size": 8,
        "chunk_size": 8,
        "layers_block_type": ["mamba", "attention", "mlp"],
    },
    "olmo_hybrid": {**DELTA, "linear_num_value_heads": 2, **ALTERNATING},
}


# Vision-language models: what their text part and the whole need.
VISION_LANGUAGE: dict[str, tuple[dict, dict]] = {
    "llava": ({"model_type": "llama"}, {"vision_config": {"model_type": "clip_vision_model", **VISION}}),
    "gemma3": (
        {"model_type": "gemma3_text", **DECODERS["gemma3_text"]},
        {"vision_config": {"model_type": "siglip_vision_model", **VISION}, "mm_tokens_per_image": 4},
    ),
    "qwen2_vl": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
        {"vision_config": {"depth": 2, "embed_dim": 16, "hidden_size": 32, "num_heads": 2, "patch_size": 8}},
    ),
    # What the vision part saw on its way is added to the stream between the first blocks.
    "qwen3_vl": (
        {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [1, 1, 2]}},
        {
            "vision_config": {
                **{"depth": 2, "hidden_size": 16, "intermediate_size": 16, "num_heads": 2, "patch_size": 8},
                **{"out_hidden_size": 32, "num_position_embeddings": 16, "deepstack_visual_indexes": [0, 1]},
                "initializer_range": 0.5,
            }
        },
    ),
}
IMAGE_TOKEN = VOCABULARY - 1


def tiny(model_type: str, *, seed: int = 0, **overrides):
    """A random model of a type in `DECODERS` or `RECURRENT`, in evaluation mode; the same weights every time."""
    from transformers import AutoConfig, AutoModelForCausalLM

    wanted = {**COMMON, **(DECODERS | RECURRENT)[model_type], **overrides}
    config = AutoConfig.for_model(model_type, **{k: v for k, v in wanted.items() if v is not None})
    return _random(AutoModelForCausalLM, config, seed)


def tiny_vision_language(model_type: str, *, image_token_id: int = IMAGE_TOKEN, seed: int = 0):
    """A random model of a type in `VISION_LANGUAGE`; an image is 16 × 16 pixels, 4 tokens."""
    from transformers import AutoConfig, AutoModelForImageTextToText

    text, whole = VISION_LANGUAGE[model_type]
    ends = {k: COMMON[k] for k in ("pad_token_id", "bos_token_id", "eos_token_id", "tie_word_embeddings")}
    image = dict(image_token_id=image_token_id, image_token_index=image_token_id)
    special = dict(video_token_id=IMAGE_TOKEN - 1, vision_start_token_id=IMAGE_TOKEN - 2)
    config = AutoConfig.for_model(
        model_type, text_config={**COMMON, **text}, **whole, **image, **special, **ends
    )
    return _random(AutoModelForImageTextToText, config, seed)


def _random(automatic, config, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return automatic.from_config(config).eval()
