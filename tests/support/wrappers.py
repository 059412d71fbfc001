"""Tiny multimodal checkpoints, written to disk by transformers, and the logits that transformers computes from text.

Sizes of language models are those of their families. The other parts are as small as transformers permits.
"""

import pathlib

import numpy as np
import torch
import transformers
from families import SIZES
from families.common import DEFAULT_HEADS, LLAMA, ROPE

TOWER = {
    "hidden_size": 8, "intermediate_size": 12, "num_hidden_layers": 1, "num_attention_heads": 2, "num_channels": 3,
    "image_size": 8, "patch_size": 4,
}
QWEN_TOWER = {"depth": 1, "hidden_size": 8, "intermediate_size": 12, "num_heads": 2, "patch_size": 4}
QWEN3_TOWER = {**QWEN_TOWER, "out_hidden_size": 36, "deepstack_visual_indexes": [0], "num_position_embeddings": 4}
PIXTRAL = {name: size for name, size in TOWER.items() if name != "image_size"}
SPEECH = {**PIXTRAL, "num_mel_bins": 8}
WHISPER = {
    "d_model": 8, "encoder_layers": 1, "encoder_attention_heads": 2, "encoder_ffn_dim": 12, "num_mel_bins": 8,
    "max_source_positions": 16,
}
QFORMER = {
    "hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 12, "vocab_size": 20,
    "encoder_hidden_size": 8,
}
CONFORMER = {
    "input_dim": 8, "num_layers": 1, "hidden_dim": 8, "num_heads": 2, "output_dim": 4, "context_size": 4,
}
SAM = {
    "hidden_size": 8, "output_channels": 4, "num_hidden_layers": 1, "num_attention_heads": 2, "image_size": 8,
    "patch_size": 4, "window_size": 2, "global_attn_indexes": [0], "mlp_dim": 12,
}
PERCEIVER = {
    "hidden_size": 36, "resampler_depth": 1, "resampler_n_latents": 2, "resampler_n_heads": 2, "resampler_head_dim": 4,
    "num_key_value_heads": 1,
}
VQ = {
    "base_channels": 32, "channel_multiplier": [1], "num_res_blocks": 1, "latent_channels": 32, "num_embeddings": 8,
    "projection_dim": 36, "image_token_embed_dim": 36, "num_patches": 2,
}


def mrope(**parameters):
    return {"rope_parameters": {**ROPE, "rope_type": "default", "mrope_section": [1, 1, 2], **parameters}}


QWEN2_TEXT = {**DEFAULT_HEADS, "hidden_size": 48, **mrope()}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 16}

def text(model_type, **fields):
    tokens = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": None}
    return {"model_type": model_type, **SIZES[model_type], **tokens, **fields}


def vision(text_config, tower=TOWER, **fields):
    return {"text_config": text_config, "vision_config": tower, **fields}


def audio(text_config, tower, **fields):
    return {"text_config": text_config, "audio_config": tower, **fields}


THINKER = vision(
    QWEN2_TEXT, {**QWEN_TOWER, "out_hidden_size": 48, "fullatt_block_indexes": [0]},
    audio_config={**WHISPER, "output_dim": 48},
)  # fmt: skip
SPLIT_EXPERTS = {"num_experts": 4, "num_experts_per_tok": 2, "moe_intermediate_size": 16}
CASES = {
    "aya_vision": vision(text("cohere2")),
    "blip-2": vision(text("opt"), qformer_config=QFORMER, num_query_tokens=2),
    "blip-2 gptj": vision(text("gptj"), qformer_config=QFORMER, num_query_tokens=2),
    "cohere2_vision": vision(text("cohere2"), alignment_intermediate_size=12),
    "deepseek_vl": vision(text("llama")),
    "deepseek_vl_hybrid": vision(text("llama"), high_res_vision_config=SAM),
    "exaone4_5": vision(
        text("exaone4"), {**QWEN_TOWER, "out_hidden_size": 36, "fullatt_block_indexes": [0], "num_key_value_heads": 2}
    ),
    "fast_vlm": vision(text("qwen2"), {**TOWER, "model_type": "siglip_vision_model"}),
    "gemma3": vision(text("gemma3_text", final_logit_softcapping=3.0), mm_tokens_per_image=4),
    "glm4v": vision(
        {**DEFAULT_HEADS, "hidden_size": 96, **mrope(partial_rotary_factor=0.5)},
        {**QWEN_TOWER, "out_hidden_size": 96, "image_size": 8},
    ),
    "glm46v": vision(
        {**DEFAULT_HEADS, "hidden_size": 96, **mrope(partial_rotary_factor=0.5)},
        {**QWEN_TOWER, "out_hidden_size": 96, "image_size": 8},
    ),
    "glmasr": audio(text("llama"), {**SPEECH, "intermediate_size": 32}),
    "got_ocr2": vision(text("qwen2"), SAM),
    "granite_speech": {
        "text_config": text("granite"), "encoder_config": CONFORMER, "has_lora_adapter": False,
        "projector_config": {"model_type": "blip_2_qformer", **QFORMER},
    },
    "granite_speech_plus": {
        "text_config": text("granite"), "encoder_config": CONFORMER, "has_lora_adapter": False,
        "projector_config": {"model_type": "blip_2_qformer", **QFORMER},
    },
    "idefics2": vision(text("mistral"), perceiver_config=PERCEIVER),
    "idefics3": vision(text("llama")),
    "instructblip": vision(text("llama"), qformer_config=QFORMER, num_query_tokens=2),
    "instructblipvideo": vision(text("llama"), qformer_config=QFORMER, num_query_tokens=2),
    "internvl": vision(text("qwen2"), tie_word_embeddings=False),
    "janus": vision(text("llama"), vq_config=VQ),
    "lighton_ocr": vision(text("qwen3")),
    "llava": vision(text("llama")),
    "llava gpt_neox": vision(text("gpt_neox", tie_word_embeddings=False), tie_word_embeddings=False),
    "llava mpt": vision(text("mpt", tie_word_embeddings=False), tie_word_embeddings=False),
    "llava_next": vision(text("mistral")),
    "llava_next_video": vision(text("llama")),
    "llava_onevision": vision(text("qwen2")),
    "mistral3": vision(text("ministral3"), tie_word_embeddings=False),
    "ovis2": vision(text("qwen2"), hidden_size=60),
    "paligemma": vision(text("gemma"), projection_dim=36),
    "paligemma 2": vision(text("gemma2"), projection_dim=36),
    "qwen2_5_omni_thinker": THINKER,
    "qwen2_5_omni": {"enable_audio_output": False, "thinker_config": THINKER},
    "qwen2_5_vl": vision(QWEN2_TEXT, {**QWEN_TOWER, "out_hidden_size": 48, "fullatt_block_indexes": [0]}),
    "qwen2_5_vl yarn": vision(
        {**QWEN2_TEXT, **mrope(**YARN)}, {**QWEN_TOWER, "out_hidden_size": 48, "fullatt_block_indexes": [0]}
    ),
    "qwen2_audio": audio(text("qwen2"), WHISPER),
    "qwen2_vl": vision(QWEN2_TEXT, {**QWEN_TOWER, "embed_dim": 8, "hidden_size": 48}),
    "qwen3_asr": audio(text("qwen3"), {**WHISPER, "output_dim": 36, "n_window": 4, "downsample_hidden_size": 8}),
    "qwen3_vl": vision({**LLAMA, **mrope()}, QWEN3_TOWER),
    "qwen3_vl_moe": vision({**LLAMA, **mrope(), **SPLIT_EXPERTS, "mlp_only_layers": [1]}, QWEN3_TOWER),
    "smolvlm": vision(text("llama")),
    "video_llama_3": vision(text("qwen2")),
    "video_llava": vision(text("llama")),
    "vipllava": vision(text("llama"), vision_feature_layer=[-1]),
    "voxtral": audio(text("llama"), {**SPEECH, "max_source_positions": 16}),
}  # fmt: skip
"""The fields of a config by model_type, which may be followed by a word that tells several cases apart."""


def write_whole(folder: pathlib.Path, case: str, shard: str = "5GB", **fields) -> tuple[pathlib.Path, torch.nn.Module]:
    """A folder that transformers wrote, and the model in it."""
    config = transformers.CONFIG_MAPPING[case.partition(" ")[0]](**{**CASES[case], **fields})
    torch.manual_seed(0)
    model = transformers.AutoModelForMultimodalLM.from_config(config, attn_implementation="eager").eval()
    with torch.no_grad():
        for parameter in model.parameters():
            values = torch.randn(parameter.shape)
            parameter.copy_(1 + 0.3 * values if parameter.ndim == 1 else values * 1.5 / parameter.shape[-1] ** 0.5)
    model.save_pretrained(folder, max_shard_size=shard)
    return folder, model


def logits_of(model: torch.nn.Module, tokens: np.ndarray) -> np.ndarray:
    """transformers' float32 logits [b p v] of text. BLIP's and Qwen's Omni models run only as a part."""
    model = model.language_model if "Blip" in type(model).__name__ else getattr(model, "thinker", model)
    with torch.no_grad():
        return model(input_ids=torch.tensor(tokens), use_cache=False).logits.numpy()
