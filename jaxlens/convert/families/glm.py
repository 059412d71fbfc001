"""GLM-4 (the checkpoints for transformers, "-hf"): Llama whose heads turn by half, in neighbouring pairs; gate and up
projections are one tensor."""

import functools

from jaxlens.config import Config
from jaxlens.convert.common import attention_biases, head_size, llama_config, rotary
from jaxlens.convert.layouts import fused_gated_mlp_rules, llama_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family


def config(hf: Reader) -> Config:
    turn = rotary(hf, d_head=head_size(hf), adjacent_pairs=True)
    return llama_config(hf, rotary=turn, biases=attention_biases(hf, "QKV"))


FAMILY = Family(
    model_types=("glm",),
    config=config,
    rules=functools.partial(llama_rules, mlp=fused_gated_mlp_rules),
)
