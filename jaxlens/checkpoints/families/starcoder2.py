"""StarCoder 2: Llama with LayerNorms, an ungated MLP, biases everywhere, and a window in every layer."""

import functools

from jaxlens.checkpoints.rules import Family, Reader
from jaxlens.checkpoints.rules.config_helpers import llama_config
from jaxlens.checkpoints.rules.tensor_rules import LAYER, llama_rules, mlp_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    for name, value in {"mlp_type": "default", "norm_type": "layer_norm", "scale_attn_weights": True}.items():
        hf.expect(name, value, because="transformers' StarCoder 2 supports no other value")
    linear = ("b_Q", "b_K", "b_V", "b_O", "b_in", "b_out") if hf.flag("use_bias") else ()
    return llama_config(
        hf, eps="norm_epsilon", normalization_type="LN", gated_mlp=False, windows=hf.size("sliding_window", None),
        biases=("norm", *linear),
    )  # fmt: skip


FAMILY = Family(
    model_types=("starcoder2",),
    config=config,
    rules=functools.partial(
        llama_rules, mlp=functools.partial(mlp_rules, first=LAYER + "mlp.c_fc", second=LAYER + "mlp.c_proj")
    ),
    unused=(
        "activation_function",  # transformers uses hidden_act
        *("attention_softmax_in_fp32", "scale_attention_softmax_in_fp32"),  # jaxlens always computes softmax in float32
    ),
)
