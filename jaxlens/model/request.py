"""The arguments of a call in checked form: the input as arrays, the layers to run, the activations to capture.

Axes: b batch, p position, d d_model.
"""

import dataclasses
import functools
from collections.abc import Callable, Collection
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Bool, Float, Int

from jaxlens._jax import is_at_hand, is_traced, on_host
from jaxlens.config import Config
from jaxlens.errors import HookError
from jaxlens.hooks.names import is_cached_by_default, matching, split_name
from jaxlens.hooks.plan import RegisteredHook
from jaxlens.hooks.positions import Positions
from jaxlens.hooks.table import FINAL_NAMES, sites
from jaxlens.model.loss import check_labels, check_predictions
from jaxlens.nn.embed import check_has_head
from jaxlens.text.tokenizer import Tokenizer

STATIC = {"static": True}
"""Marks a field of a pytree as part of the program, not data."""

# --- the layers


@dataclasses.dataclass(frozen=True)
class LayerRange:
    """Layers `start` to `stop` - 1. A run starts with the embedding if `embeds`, and ends with logits if `unembeds`."""

    start: int
    stop: int
    embeds: bool
    unembeds: bool

    @classmethod
    def of(cls, cfg: Config, start_at_layer: int | None, stop_at_layer: int | None) -> "LayerRange":
        """The layers that TransformerLens's arguments select. Negative layers count from the end."""
        n = cfg.n_layers
        for name, layer in (("start_at_layer", start_at_layer), ("stop_at_layer", stop_at_layer)):
            if layer is not None and not (isinstance(layer, int | np.integer) and -n <= layer <= n):
                raise ValueError(f"{name} is {layer!r}; expected an integer from {-n} to {n}: the model has {n} layers")
        start, stop = (
            default if layer is None else int(layer) + n * (layer < 0)
            for layer, default in ((start_at_layer, 0), (stop_at_layer, n))
        )
        return cls(start, max(start, stop), start_at_layer is None, stop_at_layer is None)

    def covers(self, name: str) -> bool:
        """Whether a run of these layers reaches a hook point."""
        layer = split_name(name)[1]
        if layer is not None:
            return self.start <= layer < self.stop
        return self.unembeds if name in FINAL_NAMES else self.embeds

    def check_hooks(self, hooks: tuple[RegisteredHook, ...]) -> None:
        """Raises HookError if a run of these layers reaches none of a hook's points."""
        for hook in hooks:
            if not any(map(self.covers, hook.names)):
                raise self._not_reached(hook.names[0])

    def wanted(self, cfg: Config, names_filter: str | Callable | Collection | None) -> frozenset[str]:
        """The full names of the activations to cache: those that the filter selects, or those cached by default.

        Each entry of a list must select an activation that these layers reach.
        """
        if names_filter is None:
            return _default_names(cfg, cfg.switched_on, self)
        filters = names_filter if isinstance(names_filter, list | tuple | set | frozenset) else [names_filter]
        if not filters:
            raise HookError("names_filter is an empty list; give at least one name, or None for everything")
        wanted: set[str] = set()
        for names in filters:
            selected = matching(cfg, names)
            if not any(map(self.covers, selected)):
                raise self._not_reached(selected[0])
            wanted |= set(filter(self.covers, selected))
        return frozenset(wanted)

    def _not_reached(self, name: str) -> HookError:
        layers = f"layers {self.start} to {self.stop - 1}" if self.start < self.stop else "no layer"
        return HookError(f'"{name}" is never reached: this run covers {layers}')


@functools.lru_cache(maxsize=256)
def _default_names(cfg: Config, switched_on: frozenset[str], layers: LayerRange) -> frozenset[str]:
    return frozenset(name for name in sites(cfg) if is_cached_by_default(cfg, name) and layers.covers(name))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RunRequest:
    """Which layers to run, what to return, and which activations to capture at which positions.

    With `last_only`, the logits are those of each row's last token [b 1 v]. A run inside a compiled function that needs
    no derivative (`has_derivative=False`) uses the loops of eager runs.
    """

    layers: LayerRange = dataclasses.field(metadata=STATIC)
    return_type: Literal["logits", "loss", "both"] | None = dataclasses.field(metadata=STATIC)
    loss_per_token: bool = dataclasses.field(default=False, metadata=STATIC)
    wanted: frozenset[str] = dataclasses.field(default=frozenset(), metadata=STATIC)
    positions: Positions | None = None
    last_only: bool = dataclasses.field(default=False, metadata=STATIC)
    has_derivative: bool = dataclasses.field(default=True, metadata=STATIC)

    def __post_init__(self):
        if self.return_type not in ("logits", "loss", "both", None):
            raise ValueError(f'return_type is {self.return_type!r}; expected "logits", "loss", "both" or None')

    def check_output(self, cfg: Config, model_input: "ModelInput") -> None:
        """Raises ValueError if the model has no such output, or if the loss is requested and the input has no
        prediction, or one without a logit. A traced mask is not checked.
        """
        if self.return_type is None or not self.layers.unembeds:
            return
        check_has_head(cfg)
        if self.return_type == "logits":
            return
        if cfg.output_head != "next_token":
            outputs = f"the outputs of this model are scores of labels ({cfg.d_vocab_out})"
            raise ValueError(f"the loss is that of the next token, but {outputs}; compute it from the logits")
        if model_input.tokens is None:
            raise ValueError("the loss needs tokens; pass tokens= with the residual stream")
        check_predictions(model_input.tokens, None if self.loss_per_token else model_input.loss_mask)
        if cfg.d_vocab_out < cfg.d_vocab:
            check_labels(model_input.tokens, model_input.loss_mask, cfg.d_vocab_out)


# --- the input


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, eq=False)
class ModelInput:
    """The input of a run: tokens, or a residual stream.

    Tokens and masks that come from the host are NumPy arrays: a program takes them in less time than `device_put`.
    `mask` is False on padding. `loss_mask` is the same, or None if no mask was passed and no text was padded. An input
    that is padded to the length of its program has its own length in `length`.
    """

    tokens: Int[ArrayLike, "b p"] | None
    residual: Float[Array, "b p d"] | None
    mask: Bool[ArrayLike, "b p"]
    loss_mask: Bool[ArrayLike, "b p"] | None
    length: int | None = dataclasses.field(default=None, metadata=STATIC)

    @property
    def n_positions(self) -> int:
        """The number of positions before the padding to the length of the program."""
        return self.mask.shape[1] if self.length is None else self.length


def read_input(
    cfg: Config, tokenizer: Tokenizer | None, input: Any, prepend_bos: bool | None = None,
    padding_side: Literal["left", "right"] | None = None, attention_mask: Any = None, tokens: Any = None,
    start_at_layer: int | None = None,
) -> ModelInput:  # fmt: skip
    """The input of a call as arrays, checked. The arguments are those of calling a model."""
    check_side(padding_side)
    if start_at_layer is not None:
        return _read_residual(cfg, input, attention_mask, tokens)
    if tokens is not None:
        raise ValueError("tokens= belongs to a residual stream and start_at_layer=; pass tokens as the input instead")
    bos, padding = bos_choice(cfg, prepend_bos), _padding_from_outside(cfg, tokenizer)
    if isinstance(input, str) or (isinstance(input, list | tuple) and input and isinstance(input[0], str)):
        tokens, mask = _tokenized(cfg, required_tokenizer(tokenizer), input, bos, padding_side)
    else:
        tokens, mask = _read_tokens(cfg, input, padding), None
        side = tokenizer and (padding_side or tokenizer.padding_side)
        if attention_mask is None and tokenizer and (side == "left" or padding is not None):
            mask = tokenizer.attention_mask(tokens, bos, side)
    mask, loss_mask = _masks(mask if attention_mask is None else attention_mask, tokens.shape)
    if padding is not None:
        tokens = _without_padding(tokens, mask, padding)
        check_in_vocabulary(tokens, cfg.d_vocab)
    return ModelInput(tokens, None, mask, loss_mask)


def check_side(padding_side: Any) -> None:
    """Raises ValueError unless `padding_side` is "left", "right" or None."""
    if padding_side not in ("left", "right", None):
        raise ValueError(f'padding_side is {padding_side!r}; expected "left", "right" or None')


def required_tokenizer(tokenizer: Tokenizer | None) -> Tokenizer:
    """The tokenizer, or a ValueError if there is none."""
    if tokenizer is None:
        raise ValueError("this model has no tokenizer; give tokens, or a tokenizer with model.set_tokenizer(...)")
    return tokenizer


def bos_choice(cfg: Config, prepend_bos: bool | None) -> bool | None:
    """`prepend_bos` for the tokenizer. None leaves the choice to the tokenizer, unless the model's default is False."""
    return False if prepend_bos is None and not cfg.default_prepend_bos else prepend_bos


def check_in_vocabulary(tokens: Any, size: int, allowed: int | None = None) -> None:
    """Raises TypeError unless tokens are integers, and ValueError for an id out of range that is not `allowed`.

    Ids are not checked if they are traced, or if reading them would wait for a device. Their logits are then NaN.
    """
    if not jnp.issubdtype(tokens.dtype, jnp.integer):
        raise TypeError(f"tokens must be integers; got dtype {tokens.dtype}")
    if is_at_hand(tokens):
        values = np.asarray(tokens)
        values = values if allowed is None else np.where(values == allowed, 0, values)
        low, high = int(values.min()), int(values.max())
        if low < 0 or high >= size:
            outside = low if low < 0 else high
            raise ValueError(f"token {outside} is out of the vocabulary; tokens are 0 to {size - 1}")


def checked_ids(tokens: Any, size: int) -> Int[Array, "*axes"]:
    """Some token ids as an array, checked by `check_in_vocabulary`, also if a device has to compute them first."""
    try:
        ids = jnp.asarray(tokens) if is_traced(tokens) else on_host(tokens)
    except ValueError as error:
        raise ValueError("token ids must be rectangular; got lists of different lengths") from error
    if ids.size == 0:
        raise ValueError(f"there are no token ids (shape {ids.shape}); give at least one")
    check_in_vocabulary(ids, size)
    return jnp.asarray(tokens)


def _padding_from_outside(cfg: Config, tokenizer: Tokenizer | None) -> int | None:
    """The pad token, if it was added to the tokenizer and the model has no embedding of it."""
    padding = None if tokenizer is None else tokenizer.pad_token_id
    return padding if padding is not None and padding >= cfg.d_vocab else None


def _without_padding(
    tokens: Int[ArrayLike, "b p"], mask: Bool[ArrayLike, "b p"], padding: int
) -> Int[ArrayLike, "b p"]:
    """The tokens, with token 0 on padding."""
    xp = jnp if isinstance(tokens, jax.Array) or isinstance(mask, jax.Array) else np
    return xp.where((tokens == padding) & ~mask, 0, tokens)


def _read_residual(cfg: Config, residual: Any, attention_mask: Any, tokens: Any) -> ModelInput:
    residual = jnp.asarray(residual)
    if residual.ndim != 3 or residual.shape[-1] != cfg.d_model:
        expected = f"a residual stream [batch, pos, d_model = {cfg.d_model}]"
        raise ValueError(f"with start_at_layer the input is {expected}; got shape {residual.shape}")
    if residual.dtype != jnp.dtype(cfg.dtype):
        raise TypeError(f"the residual stream is {residual.dtype}; expected the model's dtype, {cfg.dtype}")
    _check_length(cfg, residual.shape)
    tokens = None if tokens is None else _read_tokens(cfg, tokens)
    return ModelInput(tokens, residual, *_masks(attention_mask, residual.shape[:2]))


def _tokenized(cfg: Config, tokenizer: Tokenizer, text, bos, padding_side):
    """Tokens of text, without truncation, and the mask of their padding if there are several rows."""
    tokens = tokenizer.to_tokens(text, bos, padding_side, truncate=False)
    if not tokens.size:
        raise ValueError(f"the input is empty: {text!r} has no tokens, and no BOS is prepended")
    if len(tokenizer) > cfg.d_vocab:
        check_in_vocabulary(tokens, cfg.d_vocab, _padding_from_outside(cfg, tokenizer))
    _check_length(cfg, tokens.shape)
    return tokens, None if len(tokens) == 1 else tokenizer.attention_mask(tokens, bos, padding_side)


def _read_tokens(cfg: Config, tokens: Any, padding: int | None = None) -> Int[ArrayLike, "b p"]:
    """Tokens as an array, checked. The token `padding` need not be in the vocabulary."""
    if isinstance(tokens, float | bytes | dict | type(None)):
        got = type(tokens).__name__
        raise TypeError(f"the input must be a string, a list of strings or tokens [batch, pos]; got {got}")
    try:
        tokens = tokens if isinstance(tokens, jax.Array) else np.asarray(tokens)
    except ValueError as error:
        raise ValueError("tokens must be rectangular, [batch, pos]; pad rows of different lengths") from error
    if tokens.size == 0:
        raise ValueError(f"the input is empty (shape {tokens.shape}); give at least one token")
    check_in_vocabulary(tokens, cfg.d_vocab, padding)
    if tokens.ndim not in (1, 2):
        raise ValueError(f"tokens must be [batch, pos] or [pos]; got shape {tokens.shape}")
    tokens = tokens[None] if tokens.ndim == 1 else tokens
    _check_length(cfg, tokens.shape)
    return tokens.astype(np.int32)


def _check_length(cfg: Config, shape: tuple[int, ...]) -> None:
    if shape[1] > cfg.n_ctx:
        given = f"the input has {shape[1]} positions, more than the model's n_ctx = {cfg.n_ctx}"
        raise ValueError(f"{given}; shorten it, or load the model with a larger n_ctx if its positions allow it")


def _masks(mask: Any, shape: tuple[int, ...]) -> tuple[Bool[ArrayLike, "b p"], Bool[ArrayLike, "b p"] | None]:
    """`ModelInput.mask` and `ModelInput.loss_mask`."""
    if mask is None:
        return np.ones(shape, bool), None
    mask = mask if isinstance(mask, jax.Array) else np.asarray(mask)
    if mask.shape != shape:
        raise ValueError(f"attention_mask has shape {mask.shape}; expected {shape}, one entry per token")
    if is_at_hand(mask) and not np.isin(np.asarray(mask), (0, 1)).all():
        raise ValueError("attention_mask must hold only 1 (a token) and 0 (padding)")
    return mask.astype(bool), mask.astype(bool)
