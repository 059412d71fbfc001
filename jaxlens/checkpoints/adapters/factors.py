"""The factors of an adapter as parameters of the model, for an adapter that is not merged."""

from collections.abc import Iterable, Mapping, Sequence

import jax.numpy as jnp
import numpy as np

from jaxlens.checkpoints.adapters.weights import LowRank
from jaxlens.checkpoints.rules.rule import Move
from jaxlens.config import ADAPTED, Config
from jaxlens.errors import CheckpointError
from jaxlens.nn.module import axis_lengths
from jaxlens.nn.parameters import Params, parameter_axes, parameter_shapes

WRITERS = ("W_O", "W_out")


def adapted_config(cfg: Config, updates: Mapping[str, LowRank], plan: Iterable[Move]) -> Config:
    """The Config of the model with these updates. Raises a CheckpointError if a weight cannot have one.

    `updates` are listed by the tensors that they change, and `plan` by the tensors of the checkpoint.
    """
    targets = {move.theirs: move.ours for move in plan}
    weights, wrong = set(), []
    for name, update in updates.items():
        ours = targets.get(name, ("",))  # one of two tied tensors is no parameter
        last = {parameter.rpartition(".")[2] for parameter in ours}
        in_block = all(parameter.startswith("blocks.") and ".shared." not in parameter for parameter in ours)
        plain = not update.magnitude and not update.stack and in_block and last <= {*ADAPTED}
        weights |= last if plain else set()
        wrong += [] if plain else [f"{name} (DoRA)" if update.magnitude else name]
    ordered = tuple(name for name in ADAPTED if name in weights)
    try:
        if wrong:
            raise ValueError(f"it changes {', '.join(wrong[:3])}")
        return cfg.replace(adapter=ordered, adapter_rank=max(update.rank for update in updates.values()))
    except ValueError as error:
        possible = "low-rank updates of the linear maps of attention and MLP, without DoRA and experts"
        problem = f"the adapter cannot be kept apart: {error}; merge=False supports {possible}"
        raise CheckpointError(f"{problem}. Load it with merge=True") from error


def factor_parameters(cfg: Config, updates: Mapping[str, LowRank], plan: Iterable[Move]) -> Params:
    """The parameters A, B and scale of every update. An update of a lower rank is filled up with zeros.

    Layers without an update have zeros. The factor alpha / r is part of B, so that a scale of 1 is the trained adapter.
    """
    axes, lengths = parameter_axes(cfg), axis_lengths(cfg)
    shapes = {name: shape for name, shape in parameter_shapes(cfg).items() if ".lora_" in name}
    arrays = {name: np.full(shape.shape, name.endswith(".scale"), np.float32) for name, shape in shapes.items()}
    for move in plan:
        if move.theirs not in updates:
            continue
        update = updates[move.theirs]
        for ours, (of_A, of_B) in zip(move.ours, _in_our_axes(move, axes, update, lengths), strict=True):
            module, _, weight = ours.rpartition(".")
            name = f"{module}.lora_{weight.removeprefix('W_')}"
            arrays[f"{name}.A"][(*move.index, ..., slice(update.rank))] = of_A
            arrays[f"{name}.B"][(*move.index, slice(update.rank))] = of_B
    return {name: jnp.asarray(array, shapes[name].dtype) for name, array in arrays.items()}


def _in_our_axes(
    move: Move, axes: Mapping[str, str], update: LowRank, lengths: Mapping[str, int | None]
) -> Sequence[tuple[np.ndarray, np.ndarray]]:
    """The factors (A, B) of each parameter of a tensor, in the axes of jaxlens.

    The rule of a weight only rearranges its axes, and the residual stream is one of them. So the rule, with the rank in
    place of d_model, rearranges the factor that does not contain the residual stream.
    """
    B, A = update.factors()
    B, writes = B * update.scale, move.ours[0].endswith(WRITERS)
    own, other = (A.T, B.T) if writes else (B, A)  # [other axes, rank], [rank, d_model]
    # The tensor is [out, in], or [in, out] if transposed. d_model is the input of a reader, and the output of a writer.
    values = move.rule.load(own if writes == update.transposed else own.T, {**lengths, "d": update.rank})
    result = []
    for ours, value in zip(move.ours, values, strict=True):
        position = axes[ours].removeprefix("l ").split().index("d")
        value = np.moveaxis(value, position, -1 if writes else 0)
        result.append((value, other) if writes else (other.T, value))
    return result
