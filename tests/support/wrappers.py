"""Tiny multimodal checkpoints, written to disk by transformers, and the logits that transformers computes from text."""

import functools

import numpy as np
import torch
import transformers
from families import SIZES
from families.common import DEFAULT_HEADS, LLAMA, ROPE

TOWER = {
    "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4, "num_channels": 3,
}
MROPE = {"rope_parameters": {**ROPE, "rope_type": "default", "mrope_section": [1, 1, 2]}}
QWEN_TOWER = {"depth": 1, "hidden_size": 8, "intermediate_size": 12, "num_heads": 2, "patch_size": 4}
AUDIO = {
    "d_model": 8, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 12, "num_mel_bins": 8,
    "max_source_positions": 16,
}


def text(model_type, **fields):
    return {"model_type": model_type, **SIZES[model_type], "bos_token_id": 1, "eos_token_id": 2, **fields}


def with_vision(text_config, **fields):
    return {"text_config": text_config, "vision_config": TOWER, **fields}


WRAPPERS = {
    "gemma3": with_vision(text("gemma3_text"), mm_tokens_per_image=4),
    "qwen2_vl": {
        "text_config": {**DEFAULT_HEADS, "hidden_size": 48, **MROPE},
        "vision_config": {**QWEN_TOWER, "embed_dim": 8, "hidden_size": 48},
    },
    "qwen2_5_vl": {
        "text_config": {**DEFAULT_HEADS, "hidden_size": 48, **MROPE},
        "vision_config": {**QWEN_TOWER, "out_hidden_size": 48, "fullatt_block_indexes": [0]},
    },
    "qwen3_vl": {
        "text_config": {**LLAMA, **MROPE},
        "vision_config": {**QWEN_TOWER, "out_hidden_size": 36, "deepstack_visual_indexes": [0], "num_position_embeddings": 4},
    },
    "qwen3_vl_moe": {
        "text_config": {**LLAMA, **MROPE, "num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 12},
        "vision_config": {**QWEN_TOWER, "out_hidden_size": 36, "deepstack_visual_indexes": [0], "num_position_embeddings": 4},
    },
    "llava": with_vision(text("llama")),
    "llava_next": with_vision(text("mistral")),
    "llava_next_video": with_vision(text("llama")),
    "llava_onevision": with_vision(text("qwen2")),
    "video_llava": with_vision(text("llama")),
    "vipllava": with_vision(text("llama"), vision_feature_layer=[-1]),
    "mistral3": with_vision(text("mistral"), tie_word_embeddings=False),
    "paligemma": with_vision(text("gemma"), projection_dim=36),
    "paligemma2": with_vision(text("gemma2"), projection_dim=36),
    "idefics2": with_vision(text("mistral"), perceiver_config={"hidden_size": 36, "resampler_depth": 1, "resampler_n_latents": 2, "resampler_n_heads": 2, "resampler_head_dim": 4, "num_key_value_heads": 1}),
    "idefics3": with_vision(text("llama")),
    "smolvlm": with_vision(text("llama")),
    "aya_vision": with_vision(text("cohere2")),
    "cohere2_vision": with_vision(text("cohere2"), alignment_intermediate_size=12),
    "internvl": with_vision(text("qwen2"), tie_word_embeddings=False),
    "got_ocr2": {"text_config": text("qwen2"), "vision_config": {"hidden_size": 8, "output_channels": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8, "patch_size": 4, "window_size": 2, "global_attn_indexes": [0], "mlp_dim": 12}},
    "qwen2_audio": {"text_config": text("qwen2"), "audio_config": AUDIO},
    "voxtral": {"text_config": text("llama"), "audio_config": {**{k: v for k, v in TOWER.items() if k != "image_size"}, "num_mel_bins": 8, "max_source_positions": 16}},
    "glmasr": {"text_config": text("llama"), "audio_config": {"hidden_size": 8, "intermediate_size": 32, "num_hidden_layers": 1, "num_attention_heads": 2, "num_mel_bins": 8}},
    "ovis2": with_vision(text("qwen2"), hidden_size=60),
    "lighton_ocr": with_vision(text("qwen3")),
    "janus": with_vision(text("llama"), vq_config={"base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "latent_channels": 32, "num_embeddings": 8, "projection_dim": 36, "image_token_embed_dim": 36, "num_patches": 2}),
    "deepseek_vl": with_vision(text("llama")),
    "exaone4_5": {"text_config": text("exaone4"), "vision_config": {**QWEN_TOWER, "out_hidden_size": 36, "fullatt_block_indexes": [0], "num_key_value_heads": 2}},
    "kimi_k25": {"text_config": text("deepseek_v3"), "vision_config": {**{k: v for k, v in TOWER.items() if k != "image_size"}}, "projection_hidden_size": 8},
    "video_llama_3": with_vision(text("qwen2")),
    "fast_vlm": with_vision(text("qwen2")),
    "perception_lm": with_vision(text("llama")),
    "instructblip": with_vision(text("llama"), qformer_config={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12, "vocab_size": 20, "encoder_hidden_size": 8}, num_query_tokens=2),
    "blip-2": with_vision(text("opt"), qformer_config={"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12, "vocab_size": 20, "encoder_hidden_size": 8}, num_query_tokens=2),
    "granite_speech": {"text_config": text("granite"), "has_lora_adapter": False, "encoder_config": {"input_dim": 8, "num_layers": 1, "hidden_dim": 8, "num_heads": 2, "output_dim": 4, "context_size": 4}, "projector_config": {"model_type": "blip_2_qformer", "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12, "encoder_hidden_size": 8}},
    "glm4v": {"text_config": {**DEFAULT_HEADS, "hidden_size": 96, "rope_parameters": {**MROPE["rope_parameters"], "partial_rotary_factor": 0.5, "mrope_section": [1,1,2]}}, "vision_config": {**QWEN_TOWER, "out_hidden_size": 96, "image_size": 8}},
    "qwen2_5_omni_thinker": {"text_config": {**DEFAULT_HEADS, "hidden_size": 48, **MROPE}, "vision_config": {**QWEN_TOWER, "out_hidden_size": 48, "fullatt_block_indexes": [0]}, "audio_config": {**AUDIO, "output_dim": 48}},
}
