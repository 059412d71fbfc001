"""Activations token by token: which hook points have them, the program that computes them, and skipped tokens.

Axes: b batch, p position.
"""

import dataclasses
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from typing import Any, Literal

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool

from jaxlens.batch.contexts import Context, Reader
from jaxlens.batch.program import Program
from jaxlens.batch.sources import Source
from jaxlens.batch.stream import batches_of, overlapped, progress_bar, with_hooks
from jaxlens.config import Config
from jaxlens.errors import HookError
from jaxlens.hooks.names import HookName, split_name
from jaxlens.hooks.plan import HookSpec
from jaxlens.hooks.table import FINAL_NAMES, LENGTH_AXES, POSITION_AXES, sites
from jaxlens.model.cache.activation_cache import ActivationCache
from jaxlens.model.request import LayerRange
from jaxlens.model.transformer import HookedTransformer

SKIPS = ("padding", "bos and padding", "special tokens and padding")
Skip = Literal["padding", "bos and padding", "special tokens and padding"] | Collection[int]
"""The tokens that are left out: padding, and also BOS, all special tokens, or the tokens with these ids."""


def token_names(cfg: Config, names: HookName | list[HookName]) -> tuple[str, ...]:
    """The full names of activations with one value per token, in the order of the model.

    Raises:
        HookError: There is no name, one matches no hook point, or its value has no such axis, as that of an attention
            pattern.
    """
    if names is None or (isinstance(names, list | tuple) and not names):
        raise HookError(f'names is {names!r}; expected hook points, such as "blocks.*.hook_resid_post"')
    wanted = LayerRange.of(cfg, None, None).wanted(cfg, names)
    for name in wanted:
        site = split_name(name)[0]
        if POSITION_AXES[site] != 1 or len(LENGTH_AXES[site]) != 1:
            raise HookError(f'"{name}" does not have one value per token; choose others, or reduce it with batch.run')
    return tuple(name for name in sites(cfg) if name in wanted)


def needed_layers(cfg: Config, names: Iterable[str]) -> LayerRange:
    """The layers that a run needs for these activations. Logits are computed for those after the last layer only."""
    last = -1
    for name in names:
        site, layer = split_name(name)
        if site in FINAL_NAMES:
            return LayerRange.of(cfg, None, None)
        last = max(last, -1 if layer is None else layer)
    return LayerRange.of(cfg, None, last + 1)


@dataclasses.dataclass(frozen=True)
class TokenActivations:
    """A function of a batch: activations by name, in a dtype, after a function of the caller if there is one."""

    names: tuple[str, ...]
    dtype: str
    then: Callable[[Array], Array] | None = None

    def __call__(self, logits: Any, cache: ActivationCache) -> dict[str, Array]:
        values = {name: cache[name] if self.then is None else self._encoded(cache[name]) for name in self.names}
        return {name: value.astype(self.dtype) for name, value in values.items()}

    def _encoded(self, value: Array) -> Array:
        encoded = self.then(value)
        if jnp.shape(encoded)[:2] != value.shape[:2]:
            shapes = f"an array of shape {jnp.shape(encoded)} for {value.shape}"
            raise ValueError(f"encode returned {shapes}; expected [batch, pos, …] for [batch, pos, …]")
        return jnp.asarray(encoded)


def activations_program(
    model: HookedTransformer, activations: TokenActivations, hooks: Sequence[HookSpec] | None = None
) -> Program:
    """The program of these activations. It runs only the layers that they need."""
    layers = needed_layers(model.cfg, activations.names)
    return Program(with_hooks(model, hooks, layers), frozenset(activations.names), layers, activations, returns=None)


def each_context(
    program: Program, source: Source, reader: Reader, batch_tokens: int, progress: bool | None
) -> Iterator[tuple[Context, dict[str, np.ndarray]]]:
    """Each context of a data set with its activations [p, …] by name, in the order in which they are ready."""
    with progress_bar(progress, source.size, "documents") as bar:
        for batch, result in overlapped(program, batches_of(program, reader.contexts(source), batch_tokens, reader)):
            yield from zip(batch.contexts, program.rows(batch, result), strict=True)
            bar.update(sum(context.is_last for context in batch.contexts))


def kept_tokens(context: Context, skip: Skip, tokenizer: Any) -> Bool[np.ndarray, "p"]:
    """Which tokens of a context are not left out.

    "bos" is a BOS token at the start of the context. Special tokens are left out wherever they are.
    """
    check_skip(skip)
    if not isinstance(skip, str):
        return ~np.isin(context.tokens, list(skip))
    kept = np.ones(len(context), bool)
    if skip == "padding":
        return kept
    if skip == "bos and padding":
        kept[0] = tokenizer is None or context.tokens[0] != tokenizer.bos_token_id
        return kept
    if tokenizer is None:
        raise ValueError("this model has no tokenizer that knows special tokens; give skip= a list of token ids")
    return ~np.isin(context.tokens, tokenizer.all_special_ids)


def check_skip(skip: Skip) -> None:
    """Raises ValueError if `skip` is not one of its values."""
    if isinstance(skip, str):
        is_known = skip in SKIPS
    else:
        is_known = isinstance(skip, Collection) and all(isinstance(each, int | np.integer) for each in skip)
    if is_known:
        return
    expected = ", ".join(f'"{each}"' for each in SKIPS)
    raise ValueError(f"skip is {skip!r}; expected {expected}, or a list of token ids")
