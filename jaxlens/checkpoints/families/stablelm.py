"""StableLM: Llama with LayerNorms and partly rotated heads.

Attention and MLP may be parallel. Queries and keys may have norms, with a separate weight for each head.
"""

import functools
from collections.abc import Iterator

from jaxlens.checkpoints.rules import Family, Reader, Rule
from jaxlens.checkpoints.rules.config_helpers import head_dim, llama_config, rotary_embedding
from jaxlens.checkpoints.rules.tensor_rules import PRE_NORMS, attention_rules, llama_rules
from jaxlens.config import Config


def config(hf: Reader) -> Config:
    parallel = hf.flag("use_parallel_residual")
    norms = {"qk_norm": "heads", "qk_norm_type": "LN"} if hf.flag("qk_layernorm") else {}
    return llama_config(
        hf, eps="layer_norm_eps", normalization_type="LN", parallel_attn_mlp=parallel, shared_norm=parallel,
        rotary=rotary_embedding(hf, d_head=head_dim(hf)),
        biases=("norm", *(("b_Q", "b_K", "b_V") if hf.flag("use_qkv_bias") else ())), **norms,
    )  # fmt: skip


def rules(cfg: Config) -> Iterator[Rule]:
    norms = {"input_layernorm": "ln1"} if cfg.shared_norm else PRE_NORMS
    attention = functools.partial(attention_rules, norm="{short}_layernorm.norms.{{{heads}}}")
    yield from llama_rules(cfg, norms, attention)


FAMILY = Family(model_types=("stablelm",), config=config, rules=rules)
