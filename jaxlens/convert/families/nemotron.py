"""Nemotron 3 and 4 and Minitron: LayerNorms with unit offsets, an MLP without a gate that squares its ReLU, and a part
of each head turns."""

import functools

from jaxlens.config import Config
from jaxlens.convert.common import attention_biases, head_size, llama_config, mlp_biases, rotary
from jaxlens.convert.layouts import llama_rules, up_down_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family


def config(hf: Reader) -> Config:
    return llama_config(
        hf,
        eps="norm_eps",
        normalization_type="LN",
        rmsnorm_uses_offset=True,
        gated_mlp=False,
        rotary=rotary(hf, d_head=head_size(hf)),
        biases=("norm", *attention_biases(hf), *mlp_biases(hf, ("in", "out"))),
    )


FAMILY = Family(
    model_types=("nemotron",),
    config=config,
    rules=functools.partial(llama_rules, mlp=up_down_rules),
)
