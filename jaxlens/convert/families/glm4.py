"""GLM-4-0414: GLM with four norms a block."""

import functools

from jaxlens.config import Config
from jaxlens.convert.common import attention_biases, head_size, llama_config, rotary
from jaxlens.convert.layouts import fused_gated_mlp_rules, llama_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family

NORMS = {
    "input_layernorm": "ln1",
    "post_self_attn_layernorm": "ln1_post",
    "post_attention_layernorm": "ln2",
    "post_mlp_layernorm": "ln2_post",
}


def config(hf: Reader) -> Config:
    turn = rotary(hf, d_head=head_size(hf), adjacent_pairs=True)
    return llama_config(hf, rotary=turn, biases=attention_biases(hf, "QKV"), norm_placement="both")


FAMILY = Family(
    model_types=("glm4",),
    config=config,
    rules=functools.partial(llama_rules, norms=NORMS, mlp=fused_gated_mlp_rules),
)
