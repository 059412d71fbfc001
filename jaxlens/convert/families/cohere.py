"""Command R and Aya 23: attention and MLP side by side behind one LayerNorm, neighbouring dimensions turn, logits are
scaled; in the largest, queries and keys of every head have a norm of their own."""

import functools

from jaxlens.config import Config
from jaxlens.convert.common import cohere_config, rotary
from jaxlens.convert.layouts import llama_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family


def config(hf: Reader) -> Config:
    qk_norm = {"qk_norm": "heads", "qk_norm_type": "LN"} if hf.flag("use_qk_norm") else {}
    return cohere_config(hf, rotary=rotary(hf, adjacent_pairs=True), **qk_norm)


FAMILY = Family(
    model_types=("cohere",),
    config=config,
    rules=functools.partial(llama_rules, norms={"input_layernorm": "ln1"}),
)
