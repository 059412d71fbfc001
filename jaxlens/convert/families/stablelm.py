"""StableLM: Llama with LayerNorms, of which a part of each head turns; attention and MLP may stand side by side, and
every head's queries and keys may have a norm of their own."""

import functools
from collections.abc import Iterator

from jaxlens.config import Config
from jaxlens.convert.common import head_size, llama_config, rotary
from jaxlens.convert.layouts import PRE_NORMS, attention_rules, llama_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family, Rule


def config(hf: Reader) -> Config:
    parallel = hf.flag("use_parallel_residual")
    norms = {"qk_norm": "heads", "qk_norm_type": "LN"} if hf.flag("qk_layernorm") else {}
    return llama_config(
        hf,
        eps="layer_norm_eps",
        normalization_type="LN",
        parallel_attn_mlp=parallel,
        shared_norm=parallel,
        rotary=rotary(hf, d_head=head_size(hf)),
        biases=("norm", *(("b_Q", "b_K", "b_V") if hf.flag("use_qkv_bias") else ())),
        **norms,
    )


def rules(cfg: Config) -> Iterator[Rule]:
    norms = {"input_layernorm": "ln1"} if cfg.shared_norm else PRE_NORMS
    attention = functools.partial(attention_rules, norm="{which}_layernorm.norms.{{{heads}}}")
    yield from llama_rules(cfg, norms, attention)


FAMILY = Family(
    model_types=("stablelm",),
    config=config,
    rules=rules,
)
