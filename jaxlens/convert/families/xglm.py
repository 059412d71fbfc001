"""XGLM: sines and cosines for positions, and a scaled embedding."""

import functools
import math

from jaxlens.config import Config
from jaxlens.convert.common import fairseq_config
from jaxlens.convert.layouts import fairseq_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family


def config(hf: Reader) -> Config:
    hf.expect("pad_token_id", 0, 1, because="transformers makes the position of this number zero: it must not be one")
    return fairseq_config(
        hf,
        n_layers="num_layers",
        d_model="d_model",
        n_heads="attention_heads",
        positional_embedding_type="sinusoidal",
        embed_scale=math.sqrt(hf.size("d_model")) if hf.flag("scale_embedding") else 1.0,
    )


FAMILY = Family(
    model_types=("xglm",),
    config=config,
    rules=functools.partial(fairseq_rules, within="model.", final_norm="layer_norm"),
    ignored=("*.embed_positions.weights",),  # the sines
)
