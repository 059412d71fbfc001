"""Apertus: Llama with a norm on every head's queries and keys, and an MLP without a gate, whose xIELU is learned."""

import functools
from collections.abc import Iterator

from jaxlens.config import Config
from jaxlens.convert.common import attention_biases, llama_config
from jaxlens.convert.layouts import LAYER, llama_rules, up_down_rules
from jaxlens.convert.reader import Reader
from jaxlens.convert.rules import Family, Rule

NORMS = {"attention_layernorm": "ln1", "feedforward_layernorm": "ln2"}
ACTIVATION = LAYER + "mlp.act_fn."


def config(hf: Reader) -> Config:
    for name, only in {"qk_norm": True, "post_norm": False, "mlp_bias": False}.items():
        hf.expect(name, only, because="transformers has no other Apertus")
    return llama_config(hf, qk_norm="head", gated_mlp=False, biases=attention_biases(hf))


def mlp_rules(cfg: Config) -> Iterator[Rule]:
    yield from up_down_rules(cfg)
    if cfg.act_fn == "xielu":
        for name in ("alpha_p", "alpha_n"):
            yield Rule(ACTIVATION + name, f"blocks.{{l}}.mlp.{name}", "one")


def constants(cfg: Config) -> dict[str, float]:
    """What is not learned of a xIELU is a tensor all the same."""
    values = {"beta": 0.5, "eps": -1e-6} if cfg.act_fn == "xielu" else {}
    return {ACTIVATION.format(l=layer) + name: values[name] for layer in range(cfg.n_layers) for name in values}


FAMILY = Family(
    model_types=("apertus",),
    config=config,
    rules=functools.partial(llama_rules, norms=NORMS, mlp=mlp_rules),
    constants=constants,
)
