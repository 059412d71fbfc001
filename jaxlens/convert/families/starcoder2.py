"""StarCoder 2: Llama with LayerNorms, an MLP without a gate, biases everywhere, and a window in every layer."""

import functools

from jaxlens.config import Config
from jaxlens.convert.common import llama_config
from jaxlens.convert.layouts import LAYER, llama_rules, mlp_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family


def config(hf: Reader) -> Config:
    for name, only in {"mlp_type": "default", "norm_type": "layer_norm", "scale_attn_weights": True}.items():
        hf.expect(name, only, because="transformers' StarCoder 2 knows no other")
    linear = ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out") if hf.flag("use_bias") else ()
    return llama_config(
        hf,
        eps="norm_epsilon",
        normalization_type="LN",
        gated_mlp=False,
        windows=hf.size("sliding_window", None),
        biases=("norm", *linear),
    )


FAMILY = Family(
    model_types=("starcoder2",),
    config=config,
    rules=functools.partial(
        llama_rules, mlp=functools.partial(mlp_rules, first=LAYER + "mlp.c_fc", second=LAYER + "mlp.c_proj")
    ),
    unused=(
        "activation_function",  # hidden_act decides
        *("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32"),  # a softmax is computed in float32 here
    ),
)
