"""Hunyuan (dense): Llama with a norm on every head's queries and keys after they have turned."""

import functools

from jaxlens.config import Config, Rotary
from jaxlens.convert.common import attention_biases, head_size, llama_config, rotary
from jaxlens.convert.layouts import attention_rules, llama_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family

OF_OTHER_SCALINGS = ("factor", "beta_fast", "beta_slow", "mscale", "mscale_all_dim", "type")
ONLY = {
    "use_qk_norm": True,
    "use_rotary_pos_emb": True,
    "position_embedding_xdrope": False,
    "use_cla": False,
    "mlp_bias": False,
    "norm_type": "rms",
    "num_experts": 1,
    "add_classification_head": False,
}
"""Fields of the published files that transformers does not read: it has the model that these values describe."""


def config(hf: Reader) -> Config:
    for name, value in ONLY.items():
        hf.expect(name, value, because="transformers has no other dense Hunyuan")
    hf.expect("attention_head_dim", head_size(hf), because="head_dim says so")
    return llama_config(
        hf, biases=attention_biases(hf), qk_norm="head", qk_norm_after_rotary=True, rotary=stretched_rotary(hf)
    )


def stretched_rotary(hf: Reader) -> Rotary:
    """With `alpha`, "dynamic" is a larger base at every length; without it, it is what it is elsewhere."""
    rope = hf.inside("rope_parameters")
    if rope("rope_type", "default") != "dynamic":
        rope.expect("alpha", because='only the rope_type "dynamic" has one')
    if not (alpha := rope.number("alpha", 0)):
        return rotary(hf)
    for name in OF_OTHER_SCALINGS:
        rope(name, None)
    d_head = head_size(hf)
    return Rotary(base=rope.positive("rope_theta") * alpha ** (d_head / (d_head - 2)))


FAMILY = Family(
    model_types=("hunyuan_v1_dense",),
    config=config,
    rules=functools.partial(llama_rules, attention=functools.partial(attention_rules, norm="{word}_layernorm")),
    unused=(
        *("org_vocab_size", "cla_share_factor", "class_num", "dense_list", "pool_type"),  # other uses
        *("eod_token_id", "pad_id", "mask_init_id", "im_start_id", "im_end_id", "im_newline_id"),  # text
        *("text_start_id", "text_end_id", "image_token_id"),
    ),
)
