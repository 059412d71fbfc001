"""Hunyuan (dense): Llama with QK-norm per head after the rotary embedding."""

import functools

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import attention_biases, head_dim, llama_config, rotary_embedding
from jaxlens.checkpoints.rules.tensor_rules import attention_rules, llama_rules
from jaxlens.config import Config, Rotary

UNUSED_WITH_ALPHA = ("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "type")
FIXED_FIELDS = {
    "use_qk_norm": True, "use_rotary_pos_emb": True, "position_embedding_xdrope": False, "use_cla": False,
    "mlp_bias": False, "norm_type": "rms", "num_experts": 1, "add_classification_head": False,
}  # fmt: skip
"""Fields of the published files that transformers does not read. It implements these values."""


def config(hf: Reader) -> Config:
    for name, value in FIXED_FIELDS.items():
        hf.expect(name, value, because="transformers' dense Hunyuan supports no other value")
    hf.expect("attention_head_dim", head_dim(hf), because="it must equal head_dim")
    return llama_config(
        hf, biases=attention_biases(hf), qk_norm="head", qk_norm_after_rotary=True, rotary=rotary_with_alpha(hf)
    )


def rotary_with_alpha(hf: Reader) -> Rotary:
    """The rotary embedding. With `alpha`, rope_type "dynamic" enlarges the base at every sequence length."""
    rope = hf.inside("rope_parameters")
    if rope("rope_type", "default") != "dynamic":
        rope.expect("alpha", because='only rope_type "dynamic" has an alpha')
    if not (alpha := rope.number("alpha", 0)):
        return rotary_embedding(hf)
    for name in UNUSED_WITH_ALPHA:
        rope(name, None)
    d_head = head_dim(hf)
    return Rotary(base=rope.positive("rope_theta") * alpha ** (d_head / (d_head - 2)))


FAMILY = Family(
    model_types=("hunyuan_v1_dense",),
    config=config,
    rules=functools.partial(llama_rules, attention=functools.partial(attention_rules, norm="{long}_layernorm")),
    unused=(
        *("org_vocab_size", "cla_share_factor", "class_num", "dense_list", "pool_type"),  # other tasks
        *("eod_token_id", "pad_id", "mask_init_id", "im_start_id", "im_end_id", "im_newline_id"),  # token ids
        *("text_start_id", "text_end_id", "image_token_id"),
    ),
)
