"""HookedTransformer: embed, blocks, unembed, with every activation on the way open to be read and written.

Axes: b batch, p position, d d_model, v vocabulary.

    tokens ─ embed ─(hook_embed)─ + ─(hook_pos_embed)
                │
                ├─ blocks.0 … blocks.{l} …  (drawn in nn/block.py; run by engine.py)
                │
             ln_final ─ unembed ─ logits
"""

import contextlib
import dataclasses
import inspect
from collections.abc import Mapping
from typing import Any, Literal

import jax
import numpy as np
from jaxtyping import Array, Float, Int

from jaxlens.analysis.activation_cache import ActivationCache
from jaxlens.compat.arguments import LOADING, MAKING, only_as
from jaxlens.compat.config import HookedTransformerConfig
from jaxlens.compat.model import TransformerLensMethods
from jaxlens.config import Config
from jaxlens.engine import Caught, run_layers, run_stage
from jaxlens.gradients import with_gradients
from jaxlens.hooked import HookName, HooksOnModel, HookSpec, hook_points
from jaxlens.hooks import Added, Direction, Listening, add, pairs
from jaxlens.inputs import Given, ReadsInput
from jaxlens.loss import Output, lm_cross_entropy_loss
from jaxlens.nn.block import add as add_arrays
from jaxlens.nn.context import make_context
from jaxlens.parameters import Params, Parts, assemble, disassemble, init_parameters, parameter_shapes
from jaxlens.processed import ProcessesWeights
from jaxlens.slices import Slice
from jaxlens.span import EMBED_NAMES, FINAL_NAMES, Span
from jaxlens.weight_attributes import WeightAttributes
from jaxlens.weights import PASSES

__all__ = ["HookedTransformer", "Output", "parameter_shapes"]

Tokens = Int[Array, "b p"]
Result = Array | Output | None
READ = ("input", "prepend_bos", "padding_side", "attention_mask", "tokens", "start_at_layer")


@jax.tree_util.register_pytree_node_class
class HookedTransformer(HooksOnModel, ReadsInput, ProcessesWeights, WeightAttributes, TransformerLensMethods):
    """A decoder-only transformer whose activations can be read, written and differentiated by name.

    It is a pytree: pass it to jit, grad and vmap as an argument, never close over it there (closed-over weights become
    constants of the program). `params` is its weights as one flat dict, `with_params` the same model with others.

    Example:
        >>> cfg = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8)
        >>> model = HookedTransformer(cfg, seed=0)
        >>> logits, cache = model.run_with_cache([[1, 2, 3]])
        >>> cache["pattern", 1].shape
        (1, 2, 3, 3)
    """

    def __init__(
        self,
        cfg: Config | Mapping[str, Any],
        tokenizer: Any = None,
        *,
        default_padding_side: Literal["left", "right"] | None = None,
        seed: int | None = None,
        params: Params | None = None,
        name: str | None = None,
        source: Any = None,
        **transformerlens: Any,
    ):
        only_as(transformerlens, MAKING)
        self.cfg = HookedTransformerConfig.unwrap(cfg, seed=seed, model_name=name)
        self.parts = assemble(self.cfg, init_parameters(self.cfg, self.cfg.seed or 0) if params is None else params)
        self.name, self.source, self.processing = name, source, ()
        self._hooks, self._level, self._points = (), 0, hook_points(self.cfg)
        self.set_tokenizer(tokenizer or self._tokenizer_of_config(), default_padding_side)

    @classmethod
    def from_pretrained(
        cls,
        model_name: str,
        fold_ln: bool = True,
        center_writing_weights: bool = True,
        center_unembed: bool = True,
        refactor_factored_attn_matrices: bool = False,
        *,
        fold_value_biases: bool = True,
        dtype: Any = "float32",
        first_n_layers: int | None = None,
        n_ctx: int | None = None,
        tokenizer: Any = None,
        revision: str | None = None,
        hf_model: Any = None,
        device: Any = None,
        default_prepend_bos: bool | None = None,
        default_padding_side: Literal["left", "right"] | None = None,
        **transformerlens: Any,
    ) -> "HookedTransformer":
        """A pretrained model: a Hugging Face id, a local folder, a `.gguf` file, or "smollm2-135m-instruct".

        Its weights are processed by the passes of `jaxlens.weights` that are asked for and valid for it: the same
        log-probabilities, but other logits (`center_unembed`) and activations. `model.processing` says what was done.
        `hf_model` is a transformers model whose weights are taken instead of those by that name.

        Raises:
            CheckpointError: the checkpoint cannot be found, read or understood; nothing was loaded.
            ValueError: an argument of TransformerLens that asks for what jaxlens does not do.
        """
        from jaxlens.compat.loading import load_pretrained  # the model knows nothing of checkpoints; a doorway

        only_as(transformerlens, LOADING)
        passes = {
            "fold_ln": fold_ln, "center_writing_weights": center_writing_weights, "center_unembed": center_unembed,
            "fold_value_biases": fold_value_biases, "refactor_factored_attn_matrices": refactor_factored_attn_matrices,
        }  # fmt: skip
        how = {"dtype": dtype, "first_n_layers": first_n_layers, "n_ctx": n_ctx, "tokenizer": tokenizer,
               "revision": revision}  # fmt: skip
        text = {"default_prepend_bos": default_prepend_bos, "default_padding_side": default_padding_side}
        return load_pretrained(cls, model_name, passes, how, text, hf_model, device)

    @classmethod
    def from_pretrained_no_processing(cls, model_name: str, **options: Any) -> "HookedTransformer":
        """`from_pretrained` with every weight as the checkpoint has it; logits equal Hugging Face's."""
        return cls.from_pretrained(model_name, **{**dict.fromkeys(PASSES, False), **options})

    # --- weights

    @property
    def params(self) -> Params:
        """Every weight by name, as one flat dict; what an optimiser trains."""
        return disassemble(self.cfg, self.parts)

    def with_params(self, params: Params) -> "HookedTransformer":
        """The same model with other weights; traced ones too, so it stands inside a loss function.

        Raises:
            ValueError: a parameter is missing, unknown or of the wrong shape.
        """
        return self._with_parts(assemble(self.cfg, params))

    def _with_parts(self, parts: Parts, hooks: tuple[Added, ...] | None = None) -> "HookedTransformer":
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__)
        twin.parts, twin._hooks = parts, self._hooks if hooks is None else hooks
        return twin

    def tree_flatten(self):
        static = {name: value for name, value in self.__dict__.items() if name not in ("parts", "_hooks", "_level")}
        return (self.parts, self._hooks), _Static(static)

    @classmethod
    def tree_unflatten(cls, static, children):
        twin = object.__new__(cls)
        twin.__dict__.update(static.values)
        (twin.parts, twin._hooks), twin._level = children, 0
        return twin

    # --- running

    def __call__(
        self,
        input: Any,
        return_type: Literal["logits", "loss", "both"] | None = "logits",
        loss_per_token: bool = False,
        prepend_bos: bool | None = None,
        padding_side: Literal["left", "right"] | None = None,
        start_at_layer: int | None = None,
        tokens: Any = None,
        attention_mask: Any = None,
        stop_at_layer: int | None = None,
        hooks: list[HookSpec] | None = None,
    ) -> Result:
        """Runs the model.

        `input` is a string, a list of strings, tokens [b p], or with `start_at_layer` a residual stream [b p d] (the
        layers before it are skipped). With `stop_at_layer` (not included; negative counts from the end) the residual
        stream there is returned. `attention_mask` [b p] is 0 on padding; for strings it is known. Positions count the
        tokens that are not padding.

        Returns:
            Logits [b p v], the loss (mean, or [b p-1] with `loss_per_token`), both as an Output, or None.

        Raises:
            ValueError, TypeError: the input is empty, of the wrong rank or type, longer than `cfg.n_ctx`, or holds
                tokens out of the vocabulary.
            HookError: a hook names nothing, or returns what cannot stand in the place of what it got.
        """
        given = self._read_input(input, prepend_bos, padding_side, attention_mask, tokens, start_at_layer)
        span = Span.of(self.cfg, start_at_layer, stop_at_layer)
        run = Run(span, return_type, loss_per_token)
        return self._run(given, run, self._hooks + self._added(hooks, span))[0]

    forward = __call__

    def run_with_hooks(
        self, input: Any, *args: Any, fwd_hooks: list[HookSpec] | None = None, bwd_hooks: list[HookSpec] | None = None,
        reset_hooks_end: bool = True, clear_contexts: bool = False, **kwargs: Any,
    ) -> Result:  # fmt: skip
        """A run with hooks on it: `(name or filter function, fn)` pairs, on activations and on their gradients.

        A plain function gets concrete values, one layer at a time; under jit, grad or vmap it is traced. Further
        arguments are those of calling the model.
        """
        call = _bind_call(self, input, *args, **kwargs)
        span = Span.of(self.cfg, call["start_at_layer"], call["stop_at_layer"])
        added = self._added(fwd_hooks, span) + self._added(bwd_hooks, span, "bwd")
        hooked = self._with_parts(self.parts, self._hooks + added)
        output = hooked(input, *args, **kwargs)
        if not reset_hooks_end:
            self._hooks = hooked._hooks
        if clear_contexts:
            self.clear_contexts()
        return output

    def run_with_cache(
        self,
        input: Any,
        *args: Any,
        names_filter: HookName | list[HookName] | None = None,
        device: Any = None,
        remove_batch_dim: bool = False,
        incl_bwd: bool = False,
        reset_hooks_end: bool = True,
        clear_contexts: bool = False,
        pos_slice: Any = None,
        return_cache_object: bool = True,
        **kwargs: Any,
    ) -> tuple[Result, ActivationCache | dict[str, Array]]:
        """A run and the activations it went through: all of them, or those that `names_filter` chooses.

        `incl_bwd` adds the gradient of the output, which must be one number, at each of them as `name + "_grad"`.
        `pos_slice` keeps only some positions; a number keeps that one, and the axis (`Slice(number)` takes it off).
        `device` is where the cache lies. Further arguments are those of calling the model.

        Raises:
            HookError: `names_filter` matches nothing; the message offers the nearest names.
            ValueError: `reset_hooks_end=False`; no hooks are added that could stay.
        """
        if not reset_hooks_end:
            raise ValueError("run_with_cache adds no hooks that could stay; add_caching_hooks adds some")
        call = _bind_call(self, input, *args, **kwargs)
        given = self._read_input(**{name: call[name] for name in READ})
        span = Span.of(self.cfg, call["start_at_layer"], call["stop_at_layer"])
        wanted = span.wanted(self.cfg, names_filter)
        run = Run(span, call["return_type"], call["loss_per_token"], wanted, Slice.unwrap(pos_slice))
        runner = with_gradients if incl_bwd else HookedTransformer._run
        out, caught = runner(self, given, run, self._hooks + self._added(call["hooks"], span))
        cache = ActivationCache.of(caught, self)
        cache = cache.remove_batch_dim() if remove_batch_dim else cache
        cache = cache if device is None else cache.to(device)
        if clear_contexts:
            self.clear_contexts()
        return out, cache if return_cache_object else dict(cache.items())

    def _added(self, hooks: list[HookSpec] | None, span: Span, direction: Direction = "fwd") -> tuple[Added, ...]:
        """The hooks of a single call, all of which it must reach."""
        added = tuple(add(self.cfg, name, fn, direction, level=self._level) for name, fn in pairs(hooks))
        span.check_hooks(added)
        return added

    def _run(
        self, given: Given, run: "Run", hooks: tuple[Added, ...], probes=()
    ) -> tuple[Result, list[Caught]]:
        """The forward itself: what it returns and what was caught on the way."""
        listening = Listening.of(self.cfg, hooks, run.wanted, run.positions, self._points, probes)
        with float32_means_float32(self.cfg):
            context = make_context(self.cfg, given.real)
            x, caught = given.residual, []
            if x is None:
                start_with = given.tokens, context
                (x, context), caught = run_stage(_embed, self.parts, start_with, listening, EMBED_NAMES, self.cfg)
            elif self.cfg.positional_embedding_type == "shortformer":
                context = _shortformer(self.parts, context)
            x, found = run_layers(self.parts.stacks, x, context, run.span.start, run.span.stop, listening)
            if not run.span.unembeds:
                return x, caught + found
            logits, last = run_stage(_unembed, self.parts, x, listening, FINAL_NAMES, self.cfg)
            return self._output(logits, given, run), caught + found + last

    def _output(self, logits, given: Given, run: "Run") -> Result:
        if run.return_type in ("logits", None):
            return logits if run.return_type else None
        if given.tokens is None:
            raise ValueError("the loss needs tokens; give `tokens=` beside a residual stream")
        if given.tokens.shape[1] < 2:
            raise ValueError("the loss is of predictions of next tokens; one token has none")
        loss = self.loss_fn(logits, given.tokens, given.mask, run.loss_per_token)
        return Output(logits, loss) if run.return_type == "both" else loss

    def loss_fn(
        self, logits: Float[Array, "b p v"], tokens: Tokens, attention_mask: Any = None, per_token: bool = False
    ) -> Array:
        """`lm_cross_entropy_loss` of these logits."""
        return lm_cross_entropy_loss(logits, tokens, attention_mask, per_token)

    def __repr__(self) -> str:
        cfg = self.cfg
        size = sum(int(np.prod(shape.shape)) for shape in parameter_shapes(cfg).values())
        lines = [
            f"HookedTransformer({self.name or 'untrained'}: {cfg.n_layers} layers, {cfg.n_heads} heads, "
            f"d_model {cfg.d_model}, {size:,} parameters, {cfg.dtype})",
            f"  processing: {'' if self.processing else 'none; weights as in the checkpoint'}".rstrip(),
            *(f"    {entry}" for entry in self.processing),
        ]
        return "\n".join(lines)


@dataclasses.dataclass(frozen=True)
class Run:
    """What is asked of a run: which layers, what to return, and which activations at which positions."""

    span: Span
    return_type: str | None
    loss_per_token: bool = False
    wanted: frozenset[str] = frozenset()
    positions: Slice | None = None

    def __post_init__(self):
        if self.return_type not in ("logits", "loss", "both", None):
            raise ValueError(f'return_type is {self.return_type!r}; wanted "logits", "loss", "both" or None')


class _Static:
    """The part of a model that is not arrays, as jit compares it: by identity but for the config."""

    def __init__(self, values: dict[str, Any]):
        self.values = values

    def _key(self):
        cfg, others = self.values["cfg"], (value for name, value in self.values.items() if name != "cfg")
        return cfg, cfg.switched_on, *map(id, others)

    def __hash__(self):
        return hash(self._key())

    def __eq__(self, other):
        return isinstance(other, _Static) and self._key() == other._key()


def _embed(parts: Parts, given, tap, cfg: Config):
    """Tokens [b p] to the residual stream [b p d], and the context with what the positions add elsewhere."""
    tokens, context = given
    x = tap("hook_embed", parts.embed(tokens, tap.at("embed")))
    if parts.pos_embed is None:
        return x, context
    pos_embed = tap("hook_pos_embed", parts.pos_embed(context.positions, context.real))
    if cfg.positional_embedding_type == "shortformer":
        return x, dataclasses.replace(context, pos_embed=pos_embed)
    return add_arrays(x, pos_embed), context


def _unembed(parts: Parts, x, tap, cfg: Config):
    """The residual stream [b p d] to logits [b p v]."""
    x = x if parts.ln_final is None else parts.ln_final(x, tap.at("ln_final"))
    return parts.unembed(x, parts.embed.W_E, tap.at("unembed"))


def _shortformer(parts: Parts, context):
    return dataclasses.replace(context, pos_embed=parts.pos_embed(context.positions, context.real))


def float32_means_float32(cfg: Config):
    """Full precision of float32 matrix products on accelerators, unless the caller has chosen another."""
    if cfg.dtype != "float32" or jax.config.jax_default_matmul_precision is not None:
        return contextlib.nullcontext()
    return jax.default_matmul_precision("highest")


def _bind_call(model: HookedTransformer, *args: Any, **kwargs: Any) -> dict[str, Any]:
    """The arguments of calling a model, by name."""
    bound = inspect.signature(HookedTransformer.__call__).bind(model, *args, **kwargs)
    bound.apply_defaults()
    return bound.arguments
