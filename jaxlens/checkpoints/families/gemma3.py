"""Gemma 3 (text): five local layers per global layer, a different rotary base for each kind, and QK-norm.

From a multimodal checkpoint (`gemma3`), the language model is loaded. It is exported as `gemma3_text`.
"""

import functools
from typing import Any

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import gemma_config, rotary_by_layer_type
from jaxlens.checkpoints.rules.tensor_rules import FOUR_NORMS, llama_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    text = hf
    if hf("model_type") == "gemma3":
        text = hf.inside("text_config")
        text.expect("final_logit_softcapping", because="transformers' multimodal Gemma 3 does not apply it")
    text.expect("attn_logit_softcapping", because="transformers' Gemma 3 does not apply it")
    return gemma_config(
        text, qk_norm="head", rotary=rotary_by_layer_type(text), tie_word_embeddings=hf.flag("tie_word_embeddings")
    )


def source(fields: dict[str, Any]) -> dict[str, Any]:
    if "text_config" not in fields:
        return dict(fields)
    tied = {"tie_word_embeddings": fields.get("tie_word_embeddings", True)}
    return {**fields["text_config"], **tied, "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"]}


FAMILY = Family(
    model_types=("gemma3_text", "gemma3"),
    config=config,
    rules=functools.partial(llama_rules, norms=FOUR_NORMS),
    unused=(
        *("sliding_window_pattern", "_sliding_window_pattern"),  # transformers uses layer_types
        *("vision_config", "mm_tokens_per_image", "boi_token_index", "eoi_token_index", "image_token_index"),
    ),
    ignored=("*vision_tower.*", "*multi_modal_projector.*"),
    copies=tuple((name, "model.embed_tokens.weight") for name in ("lm_head.weight", "language_model.lm_head.weight")),
    prefixes=("model.", "", "model.language_model.", "language_model.model."),
    source=source,
)
