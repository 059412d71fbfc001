"""TransformerLens's SoLU models trained on the Pile (solu-1l-pile to 12l-pile): the toy models, partly transposed."""

import dataclasses
from collections.abc import Iterator

from jaxlens.checkpoints import native
from jaxlens.checkpoints.families import neel
from jaxlens.checkpoints.rules import Rule
from jaxlens.config import Config

TRANSPOSED_UP_TO = {"W_pos": 8}
"""The number of layers up to which the models have a weight with its last two axes swapped, if it is not 6."""


def rules(cfg: Config) -> Iterator[Rule]:
    for rule in native.rules(cfg):
        weight = rule.theirs.rpartition(".")[2]
        if weight.startswith("W_") and cfg.n_layers <= TRANSPOSED_UP_TO.get(weight, 6):
            *rest, rows, columns = rule.pattern.split()
            rule = dataclasses.replace(rule, pattern=f"{' '.join((*rest, columns, rows))} -> {rule.pattern}")
        yield rule


FAMILY = dataclasses.replace(neel.FAMILY, model_types=("neel-solu-old",), rules=rules)
