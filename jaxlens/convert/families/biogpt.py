"""BioGPT: OPT with a scaled embedding and GELU."""

import functools
import math

from jaxlens.config import Config
from jaxlens.convert.common import fairseq_config
from jaxlens.convert.layouts import fairseq_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family


def config(hf: Reader) -> Config:
    return fairseq_config(
        hf,
        d_mlp="intermediate_size",
        act_fn="hidden_act",
        embed_scale=math.sqrt(hf.size("hidden_size")) if hf.flag("scale_embedding") else 1.0,
    )


FAMILY = Family(
    model_types=("biogpt",),
    config=config,
    rules=functools.partial(fairseq_rules, within="biogpt.", final_norm="layer_norm", unembed="output_projection"),
    unused=("layer_norm_eps",),  # transformers' BioGPT does not look at it
    copies=(("output_projection.weight", "biogpt.embed_tokens.weight"),),
    prefixes=("biogpt.", ""),
)
