"""CodeGen: GPT-J with queries, values and keys in one tensor, in four parts (of the four cores of a TPU)."""

from collections.abc import Iterator

from jaxlens.config import Config
from jaxlens.convert.common import gptj_config
from jaxlens.convert.layouts import GPT_LAYER, fused_attention_rules, gpt_rules, mlp_rules, out_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family, Rule

CORES = 4


def config(hf: Reader) -> Config:
    if hf.size("n_head") % CORES:
        raise hf.refused("n_head", f"a multiple of {CORES} is wanted: the heads lie in so many parts")
    return gptj_config(hf)


def rules(cfg: Config) -> Iterator[Rule]:
    yield from gpt_rules(cfg)
    fused, pattern = GPT_LAYER + "attn.qkv_proj", "(core three head h) d -> three (core head) d h"
    yield from fused_attention_rules(cfg, fused, pattern, "QVK", core=CORES, head=cfg.n_heads // CORES)
    yield from out_rules(cfg, GPT_LAYER + "attn.out_proj")
    yield from mlp_rules(cfg, GPT_LAYER + "mlp.fc_in", GPT_LAYER + "mlp.fc_out")


FAMILY = Family(
    model_types=("codegen",),
    config=config,
    rules=rules,
    unused=("n_ctx",),  # n_positions decides
    ignored=("*.attn.causal_mask",),
    copies=(("lm_head.weight", "transformer.wte.weight"),),
    prefixes=("transformer.", ""),
)
