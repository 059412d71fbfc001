"""Nemotron 3 and 4 and Minitron: LayerNorms with unit offsets, an MLP without a gate that squares its ReLU, and a part
of each head turns."""

import functools

from jaxlens.config import Config
from jaxlens.convert.common import attention_biases, head_size, llama_config, mlp_biases, rotary
from jaxlens.convert.layouts import llama_rules, up_down_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family


def config(hf: Reader) -> Config:
    share = hf.inside("rope_parameters").positive("partial_rotary_factor", 1)
    for name, only in {"kv_channels": head_size(hf), "rope_percent": share}.items():  # in older files
        hf.expect(name, only, because="head_dim and partial_rotary_factor say so")
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
