"""Nemotron 3 and 4, Minitron: Llama with offset LayerNorms, an ungated squared-ReLU MLP, and partly rotated heads."""

import functools

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import (
    attention_biases,
    head_dim,
    llama_config,
    mlp_biases,
    rotary_embedding,
)
from jaxlens.checkpoints.rules.tensor_rules import llama_rules, ungated_mlp_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    fraction = hf.inside("rope_parameters").positive("partial_rotary_factor", 1)
    hf.expect("kv_channels", head_dim(hf), because="it must equal head_dim")
    hf.expect("rope_percent", fraction, because="it must equal partial_rotary_factor")
    return llama_config(
        hf, eps="norm_eps", normalization_type="LN", rmsnorm_uses_offset=True, gated_mlp=False,
        rotary=rotary_embedding(hf, d_head=head_dim(hf)),
        biases=("norm", *attention_biases(hf), *mlp_biases(hf, ("in", "out"))),
    )  # fmt: skip


FAMILY = Family(model_types=("nemotron",), config=config, rules=functools.partial(llama_rules, mlp=ungated_mlp_rules))
