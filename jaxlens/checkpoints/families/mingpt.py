"""Othello-GPT as TransformerLens publishes it, with the tensor names of minGPT (github.com/karpathy/minGPT)."""

import dataclasses
from collections.abc import Iterator

from jaxlens.checkpoints.families import neel
from jaxlens.checkpoints.rules import Rule
from jaxlens.checkpoints.rules.tensor_rules import attn_out_rules, mlp_rules, norm_rules, unembed_rules
from jaxlens.config import Config

BLOCK = "blocks.{l}."


def rules(cfg: Config) -> Iterator[Rule]:
    yield Rule("tok_emb.weight", "embed.W_E", "v d")
    yield Rule("pos_emb", "pos_embed.W_pos", "batch c d -> (batch c) d", own={"batch": 1})
    for norm in ("ln1", "ln2"):
        yield from norm_rules(cfg, BLOCK + norm, BLOCK + norm)
    for theirs, ours in {"query": "Q", "key": "K", "value": "V"}.items():
        yield Rule(f"{BLOCK}attn.{theirs}.weight", f"{BLOCK}attn.W_{ours}", "(n h) d -> n d h")
        yield Rule(f"{BLOCK}attn.{theirs}.bias", f"{BLOCK}attn.b_{ours}", "(n h) -> n h")
    yield from attn_out_rules(cfg, BLOCK + "attn.proj")
    yield from mlp_rules(cfg, BLOCK + "mlp.0", BLOCK + "mlp.2")
    yield from norm_rules(cfg, "ln_f", "ln_final")
    yield from unembed_rules(cfg, "head")


FAMILY = dataclasses.replace(neel.FAMILY, model_types=("mingpt",), rules=rules)
