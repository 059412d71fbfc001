"""Apertus: Llama with QK-norm per head, and an ungated MLP with the learned activation xIELU."""

import functools
from collections.abc import Iterator

from jaxlens.checkpoints.rules import Family, Reader, Rule
from jaxlens.checkpoints.rules.config_helpers import attention_biases, llama_config
from jaxlens.checkpoints.rules.tensor_rules import LAYER, llama_rules, ungated_mlp_rules
from jaxlens.config import Config

NORMS = {"attention_layernorm": "ln1", "feedforward_layernorm": "ln2"}
ACTIVATION = LAYER + "mlp.act_fn."


def config(hf: Reader) -> Config:
    for name, value in {"qk_norm": True, "post_norm": False, "mlp_bias": False}.items():
        hf.expect(name, value, because="transformers' Apertus supports no other value")
    return llama_config(hf, qk_norm="head", gated_mlp=False, biases=attention_biases(hf))


def mlp_rules(cfg: Config) -> Iterator[Rule]:
    yield from ungated_mlp_rules(cfg)
    if cfg.act_fn == "xielu":
        for name in ("alpha_p", "alpha_n"):
            yield Rule(ACTIVATION + name, f"blocks.{{l}}.mlp.{name}", "one")


def constants(cfg: Config) -> dict[str, float]:
    """The constants of xIELU. They are not learned, but checkpoints store them as tensors."""
    values = {"beta": 0.5, "eps": -1e-6} if cfg.act_fn == "xielu" else {}
    return {ACTIVATION.format(l=layer) + name: values[name] for layer in range(cfg.n_layers) for name in values}


FAMILY = Family(
    model_types=("apertus",), config=config, rules=functools.partial(llama_rules, norms=NORMS, mlp=mlp_rules),
    constants=constants,
)  # fmt: skip
