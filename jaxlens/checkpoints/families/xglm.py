"""XGLM: sinusoidal positions, and a scaled embedding."""

import functools
import math

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import fairseq_config
from jaxlens.checkpoints.rules.tensor_rules import fairseq_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    hf.expect("pad_token_id", 0, 1, because="transformers zeroes this row of the position table; tokens start at row 2")
    return fairseq_config(
        hf, n_layers="num_layers", d_model="d_model", n_heads="attention_heads", positional_embedding_type="sinusoidal",
        embed_scale=math.sqrt(hf.size("d_model")) if hf.flag("scale_embedding") else 1.0,
    )  # fmt: skip


FAMILY = Family(
    model_types=("xglm",),
    config=config,
    rules=functools.partial(fairseq_rules, prefix="model.", final_norm="layer_norm"),
    ignored=("*.embed_positions.weights",),  # the sinusoids
)
