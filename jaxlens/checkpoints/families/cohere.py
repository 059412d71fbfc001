"""Command R and Aya 23: parallel attention and MLP behind one LayerNorm, adjacent rotary pairs, and scaled logits.

The largest model normalizes queries and keys, with a separate weight for each head.
"""

import functools

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import cohere_config, rotary_embedding
from jaxlens.checkpoints.rules.tensor_rules import llama_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    qk_norm = {"qk_norm": "heads", "qk_norm_type": "LN"} if hf.flag("use_qk_norm") else {}
    return cohere_config(hf, rotary=rotary_embedding(hf, adjacent_pairs=True), **qk_norm)


FAMILY = Family(
    model_types=("cohere",), config=config, rules=functools.partial(llama_rules, norms={"input_layernorm": "ln1"})
)
