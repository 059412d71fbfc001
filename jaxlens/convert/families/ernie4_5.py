"""ERNIE 4.5 (dense): Llama whose heads turn in neighbouring pairs, with biases everywhere or nowhere."""

from jaxlens.config import Config
from jaxlens.convert.common import llama_config, rotary
from jaxlens.convert.layouts import llama_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family


def config(hf: Reader) -> Config:
    biases = ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_gate", "b_out") if hf.flag("use_bias") else ()
    return llama_config(hf, rotary=rotary(hf, adjacent_pairs=True), biases=biases)


FAMILY = Family(
    model_types=("ernie4_5",),
    config=config,
    rules=llama_rules,
)
