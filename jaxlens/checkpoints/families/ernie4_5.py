"""ERNIE 4.5 (dense): Llama with adjacent rotary pairs, and biases in all linear layers or in none."""

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import llama_config, rotary_embedding
from jaxlens.checkpoints.rules.tensor_rules import llama_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    biases = ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_gate", "b_out") if hf.flag("use_bias") else ()
    return llama_config(hf, rotary=rotary_embedding(hf, adjacent_pairs=True), biases=biases)


FAMILY = Family(model_types=("ernie4_5",), config=config, rules=llama_rules)
