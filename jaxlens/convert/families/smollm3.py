"""SmolLM 3: Llama in which every fourth layer has no positions."""

from jaxlens.config import Config
from jaxlens.convert.common import attention_biases, llama_config, mlp_biases, per_layer, rotary, windows
from jaxlens.convert.layouts import llama_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family


def config(hf: Reader) -> Config:
    return llama_config(
        hf,
        rotary=per_layer(hf, "no_rope_layers", {1: rotary(hf), 0: None}),  # its 1 is a layer with positions
        windows=windows(hf),
        biases=attention_biases(hf) + mlp_biases(hf),
    )


FAMILY = Family(
    model_types=("smollm3",),
    config=config,
    rules=llama_rules,
    unused=("no_rope_layer_interval", "use_sliding_window", "max_window_layers"),  # layer by layer in the lists above
)
