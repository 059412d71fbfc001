"""BioGPT: OPT with a scaled embedding and GELU."""

import functools
import math

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import fairseq_config
from jaxlens.checkpoints.rules.tensor_rules import fairseq_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    return fairseq_config(
        hf, d_mlp="intermediate_size", act_fn="hidden_act",
        embed_scale=math.sqrt(hf.size("hidden_size")) if hf.flag("scale_embedding") else 1.0,
    )  # fmt: skip


FAMILY = Family(
    model_types=("biogpt",),
    config=config,
    rules=functools.partial(fairseq_rules, prefix="biogpt.", final_norm="layer_norm", unembed="output_projection"),
    unused=("layer_norm_eps",),  # transformers' BioGPT does not read it
    copies=(("output_projection.weight", "biogpt.embed_tokens.weight"),),
    prefixes=("biogpt.", ""),
)
