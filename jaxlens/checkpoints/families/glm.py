"""GLM-4 ("-hf" checkpoints): Llama with half of each head rotated, in adjacent pairs, and fused gate and up layers."""

import functools

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import attention_biases, head_dim, llama_config, rotary_embedding
from jaxlens.checkpoints.rules.tensor_rules import fused_mlp_rules, llama_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    rotary = rotary_embedding(hf, d_head=head_dim(hf), adjacent_pairs=True)
    return llama_config(hf, rotary=rotary, biases=attention_biases(hf, "QKV"))


FAMILY = Family(model_types=("glm",), config=config, rules=functools.partial(llama_rules, mlp=fused_mlp_rules))
