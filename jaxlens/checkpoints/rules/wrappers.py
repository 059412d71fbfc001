"""Multimodal models around a language model of a supported family: where it lies, and what lies beside it."""

import dataclasses
import functools
from collections.abc import Iterator, Mapping
from typing import Any

from jaxlens.checkpoints.rules.rule import Rule
from jaxlens.checkpoints.rules.tensor_rules import LAYER, Rules, expert_layers, gated_mlp_rules, llama_rules
from jaxlens.config import Config

PLAIN_HEAD = {"final_logit_softcapping": None, "logit_scale": 1.0, "logits_scaling": 1.0}
"""Fields of language models that act on logits, with the values at which they have no effect."""


@dataclasses.dataclass(frozen=True)
class Wrapper:
    """A multimodal model. Only its language model is read.

    `parts` are the other parts, each with the modules it consists of. `fixed` are fields of the language model's config
    to which transformers' multimodal model gives a value of its own. Most of these models have a head of their own,
    which neither scales nor caps logits. `within` is the config.json field with all other fields, if there is one: it
    describes the part of the model that reads text, images and sound. `rules` are the layouts of tensors, if they
    differ from that of the family. The first that fits the shapes of a checkpoint is used.
    """

    parts: Mapping[str, tuple[str, ...]]
    text: str = "text_config"  # the config.json field with the config of the language model
    fixed: Mapping[str, Any] = dataclasses.field(default_factory=lambda: PLAIN_HEAD)
    unused: tuple[str, ...] = ()  # config.json fields without effect on text, beyond UNUSED_FIELDS
    within: str | None = None
    rules: tuple[Rules, ...] = ()

    @property
    def unread_tensors(self) -> dict[str, tuple[str, ...]]:
        """The tensors of each part of `parts`, as glob patterns."""
        patterns = ("{0}", "{0}.*", "model.{0}", "model.{0}.*")
        return {
            part: tuple(pattern.format(module) for module in modules for pattern in patterns)
            for part, modules in self.parts.items()
        }


def experts_in_one_tensor(gate_up: str, down: str) -> Rules:
    """The rules of Qwen 3 MoE with all experts of a layer in one tensor, of these axes."""

    def mlp(cfg: Config) -> Iterator[Rule]:
        theirs, ours, layers = LAYER + "mlp.", "blocks.{l}.mlp.", expert_layers(cfg)
        yield from gated_mlp_rules(cfg)
        yield Rule(theirs + "gate.weight", ours + "W_router", "e d -> d e", layers=layers)
        gate_and_up = (ours + "W_gate", ours + "W_in")
        yield Rule(theirs + "experts.gate_up_proj", gate_and_up, f"{gate_up} -> two e d f", layers=layers)
        yield Rule(theirs + "experts.down_proj", ours + "W_out", f"{down} -> e f d", layers=layers)

    return functools.partial(llama_rules, mlp=mlp)


LANGUAGE_MODELS = {
    "glm4v_text": "glm4",
    "qwen2_5_omni_text": "qwen2",
    "qwen2_5_vl_text": "qwen2",
    "qwen2_vl_text": "qwen2",
    "qwen3_vl_moe_text": "qwen3_moe",
    "qwen3_vl_text": "qwen3",
}
"""The language models that exist only inside a multimodal model: their model_type, and that of the family they are."""

POSITION_FIELDS = ("mrope_section", "mrope_interleaved")
"""Entries of `rope_parameters` that give images and videos positions of their own. The positions of text are 0, 1, …"""

LAYOUTS = (
    ("", "model.language_model."),
    ("language_model.", None),
    ("language_model.", "model."),
    ("", "language_model."),
    ("", "model.text_model."),
    ("", "text_model."),
    ("thinker.", None),
    ("", None),
    ("", ""),
)
"""The prefixes of the language model's tensors: of all of them, and of those without the head.

None stands for the prefix in checkpoints of the language model alone. The first four are those of transformers since
4.52 and before, of GPT-J's tensors in transformers 5, and of a model without its head. The next two are those of the
Idefics models, followed by that of Qwen 2.5 Omni. In the last two, that of Qwen 2 VL and one without prefixes, the
language model is stored as if it were alone.
"""

VISION = {"vision": ("vision_tower", "multi_modal_projector", "image_newline")}
QWEN_VISION = {"vision": ("visual",)}
IDEFICS_VISION = {"vision": ("vision_model", "connector", "perceiver_resampler")}
AUDIO = {"audio": ("audio_tower", "multi_modal_projector")}
BLIP = {"vision": ("vision_model", "query_tokens", "qformer", "language_projection")}

WRAPPERS: Mapping[str, Wrapper] = {
    "aya_vision": Wrapper(VISION),
    "blip-2": Wrapper(BLIP, fixed={}),
    "cohere2_vision": Wrapper(VISION),
    "deepseek_vl": Wrapper({"vision": ("vision_model", "aligner")}),
    "deepseek_vl_hybrid": Wrapper({"vision": (
        "vision_model", "aligner", "high_res_vision_model", "high_res_vision_neck", "high_res_vision_proj",
        "high_res_vision_alpha",
    )}),
    "exaone4_5": Wrapper(QWEN_VISION),
    "fast_vlm": Wrapper(VISION),
    "gemma3": Wrapper(VISION),
    "glm4v": Wrapper(QWEN_VISION, fixed={**PLAIN_HEAD, "attention_bias": True}),
    "glm46v": Wrapper(QWEN_VISION, fixed={**PLAIN_HEAD, "attention_bias": True}),
    "glmasr": Wrapper(AUDIO),
    "got_ocr2": Wrapper(VISION),
    "granite_speech": Wrapper({"audio": ("encoder", "projector")}, unused=("window_size", "has_lora_adapter")),
    "granite_speech_plus": Wrapper({"audio": ("encoder", "projector")}, unused=("window_size", "has_lora_adapter")),
    "idefics2": Wrapper(IDEFICS_VISION),
    "idefics3": Wrapper(IDEFICS_VISION, unused=("scale_factor",)),
    "instructblip": Wrapper(BLIP, fixed={}),
    "instructblipvideo": Wrapper(BLIP, fixed={}),
    "internvl": Wrapper(VISION),
    "internvl_chat": Wrapper(
        {"vision": ("vision_model", "mlp1")}, text="llm_config", fixed={},
        unused=(
            "dynamic_image_size", "force_image_size", "image_fold", "max_dynamic_patch", "min_dynamic_patch",
            "pad2square", "ps_version", "select_layer", "system_message", "template", "use_backbone_lora",
            "use_llm_lora", "use_thumbnail",
        ),
    ),
    "janus": Wrapper({
        "vision": ("vision_model", "aligner"),
        "image generation": ("vqmodel", "generation_embeddings", "generation_aligner", "generation_head"),
    }),
    "lighton_ocr": Wrapper({"vision": ("vision_encoder", "vision_projection")}),
    "llava": Wrapper(VISION),
    "llava_next": Wrapper(VISION),
    "llava_next_video": Wrapper(VISION),
    "llava_onevision": Wrapper(VISION),
    "mistral3": Wrapper(VISION),
    "ovis2": Wrapper({"vision": ("vision_tower", "visual_embeddings_table")}, unused=("vocab_size", "hidden_size")),
    "paligemma": Wrapper(VISION, fixed={"use_bidirectional_attention": False}, unused=("vocab_size", "hidden_size")),
    "perception_lm": Wrapper(VISION),
    "qwen2_5_omni": Wrapper(
        {"vision": ("thinker.visual",), "audio": ("thinker.audio_tower",), "speech": ("talker", "token2wav")},
        unused=("talker_config", "token2wav_config", "enable_audio_output", "enable_talker"), within="thinker_config",
    ),
    "qwen2_5_omni_thinker": Wrapper({**QWEN_VISION, "audio": ("audio_tower",)}),
    "qwen2_5_vl": Wrapper(QWEN_VISION),
    "qwen2_audio": Wrapper(AUDIO),
    "qwen2_vl": Wrapper(QWEN_VISION),
    "qwen3_asr": Wrapper(AUDIO, unused=("timestamp_token_id", "token_classification_bias")),
    "qwen3_vl": Wrapper(QWEN_VISION),
    "qwen3_vl_moe": Wrapper(QWEN_VISION, fixed={**PLAIN_HEAD, "norm_topk_prob": True}, rules=(
        experts_in_one_tensor("e (two f) d", "e d f"),  # as transformers 5 writes them
        experts_in_one_tensor("e d (two f)", "e f d"),  # as published
    )),
    "smolvlm": Wrapper(IDEFICS_VISION, unused=("scale_factor",)),
    "video_llama_3": Wrapper({"vision": ("vision_model", "projector")}),
    "video_llava": Wrapper({"image": ("image_tower", "multi_modal_projector"), "video": ("video_tower",)}),
    "vipllava": Wrapper(VISION),
    "voxtral": Wrapper(AUDIO),
}  # fmt: skip
"""The multimodal models by model_type. The family of the language model follows from its own model_type."""

UNUSED_FIELDS = frozenset(
    " ".join(
        (
            "audio_config encoder_config high_res_vision_config perceiver_config projector_config qformer_config",
            "vision_config vq_config",
            # tokens that stand for other inputs
            "audio_end_token_id audio_start_token_id audio_token_id audio_token_index boi_token_index eoi_token_index",
            "image_end_token_id image_start_token_id image_token_id image_token_index user_token_id video_end_token_id",
            "video_start_token_id video_token_id video_token_index vision_end_token_id vision_start_token_id",
            "vision_token_id visual_indicator_token_ids _pad_token_id ignore_index",
            # other parts, and what they hand to the language model
            "adapter_layer_norm_eps alignment_intermediate_size downsample_factor downsample_rate downsample_ratio",
            "image_grid_pinpoints image_seq_len image_seq_length image_text_hidden_size mm_tokens_per_image",
            "num_image_tokens multimodal_projector_bias num_query_tokens pixel_shuffle_factor position_id_per_seconds",
            "projection_dim projector_hidden_act projector_layernorm_eps",
            "projector_pooling_ratio seconds_per_chunk spatial_merge_size spatial_pool_mode spatial_pool_stride",
            "use_decoder_only_language_model use_image_newline_parameter use_resampler video_seq_length",
            "vision_aspect_ratio vision_feature_layer vision_feature_select_strategy vision_use_cls_token",
        )
    ).split()
)
"""config.json fields of multimodal models, and of their language models, without effect on text."""

INACTIVE = {"qk_layer_norms": False}
"""config.json fields of language models without effect if they have these values."""
