"""HookedTransformer: a transformer whose activations can be read, written and differentiated by name.

Axes: b batch, p position, d d_model, v vocabulary.
"""

import contextlib
import dataclasses
import inspect
import os
from collections.abc import Mapping, Sequence
from typing import Any, Literal, overload

import jax
import numpy as np
from jax.sharding import Mesh
from jaxtyping import Array

from jaxlens import config
from jaxlens._jax import as_device
from jaxlens.config import Config
from jaxlens.hooks.names import HookName
from jaxlens.hooks.plan import Direction, HookSpec, RegisteredHook, hook_specs, register
from jaxlens.hooks.positions import Positions
from jaxlens.hooks.slice import Slice
from jaxlens.model.adapter_methods import AdapterMethods
from jaxlens.model.arguments import LOADING, MAKING, RUNNING, check_only, renamed
from jaxlens.model.cache.activation_cache import ActivationCache
from jaxlens.model.generation.decode_methods import DecodeMethods
from jaxlens.model.generation.generate_methods import GenerateMethods
from jaxlens.model.generation.past import TransformerLensKeyValueCache
from jaxlens.model.gradients import run_with_gradients
from jaxlens.model.hook_methods import HookMethods, hook_points
from jaxlens.model.label_methods import LabelMethods
from jaxlens.model.loss import Output
from jaxlens.model.own_config import ConfigOfModel
from jaxlens.model.pretrained import load_pretrained
from jaxlens.model.pytree import ModelPytree
from jaxlens.model.request import LayerRange, ModelInput, RunRequest, read_input
from jaxlens.model.run_methods import Result, RunMethods
from jaxlens.model.text_methods import TextMethods, as_tokenizer, tokenizer_of_config, with_vocabulary
from jaxlens.model.torch_methods import TorchMethods
from jaxlens.model.weight_methods import WeightMethods
from jaxlens.model.weight_properties import WeightProperties
from jaxlens.nn.parameters import Params, assemble, disassemble, init_parameters, parameter_shapes
from jaxlens.nn.transformer import Modules
from jaxlens.sharding import Rules, Sharding, sharding_of
from jaxlens.weights import PASSES, process_weights

__all__ = ["HookedTransformer", "Output", "parameter_shapes"]


class HookedTransformer(
    HookMethods, RunMethods, TextMethods, DecodeMethods, GenerateMethods, LabelMethods, AdapterMethods, WeightMethods,
    WeightProperties, TorchMethods, ModelPytree,
):  # fmt: skip
    """A decoder-only transformer whose activations can be read, written and differentiated by name.

    It is a pytree. Pass it to jit, grad and vmap as an argument; a model that a jitted function closes over becomes a
    constant of the program. `params` is a flat dict of its weights, and `with_params` makes a copy with other weights.
    It is also a Flax module, whose weights are `nnx.Param`s: see `docs/flax.md`.

    If `check_finite` is set, a call outside of jit warns when its output is not finite, and names the first hook point
    whose value is not finite. Half-precision models always do this for a loss.

    Example:
        >>> cfg = Config(n_layers=2, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8)
        >>> model = HookedTransformer(cfg, seed=0)
        >>> logits, cache = model.run_with_cache([[1, 2, 3]])
        >>> cache["pattern", 1].shape
        (1, 2, 3, 3)
    """

    check_finite = False
    sharding: Sharding | None = None
    cfg = ConfigOfModel()

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
        check_only(transformerlens, MAKING)
        fields = {"seed": seed, "model_name": name}
        fields = {field: value for field, value in fields.items() if value is not None}
        cfg = cfg if isinstance(cfg, Config) else config.HookedTransformerConfig(**cfg)
        cfg = cfg.replace(**fields) if fields else cfg
        tokenizer = as_tokenizer(tokenizer or tokenizer_of_config(cfg), cfg)
        self.cfg = cfg = with_vocabulary(cfg, tokenizer)
        self.modules = assemble(cfg, init_parameters(cfg, cfg.seed or 0) if params is None else params)
        self.name, self.source, self.processing = name, source, ()
        self._hooks, self._level, self._points = (), 0, hook_points(cfg)
        self.set_tokenizer(tokenizer, default_padding_side)

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
        checkpoint_index: int | None = None,
        checkpoint_value: int | None = None,
        hf_model: Any = None,
        device: Any = None,
        default_prepend_bos: bool | None = None,
        default_padding_side: Literal["left", "right"] | None = None,
        token: str | bool | None = None,
        cache_dir: str | os.PathLike[str] | None = None,
        local_files_only: bool = False,
        adapter: str | os.PathLike[str] | None = None,
        merge: bool = True,
        mesh: Mesh | None = None,
        rules: Rules | None = None,
        **transformerlens: Any,
    ) -> "HookedTransformer":
        """Loads a pretrained model: a name of TransformerLens ("gpt2-small"), a Hugging Face id, or a local checkpoint.

        A local checkpoint is a folder, a `.gguf` file, or "smollm2-135m-instruct". `checkpoint_index` or
        `checkpoint_value` (a step or a number of tokens) selects a training checkpoint of Pythia, of Stanford CRFM's
        GPT-2, or of a toy model. `token`, `cache_dir` and `local_files_only` are passed to huggingface_hub.

        `adapter` is a LoRA adapter of peft, as a folder or a Hugging Face id, which is merged into the weights.
        `model_name` may also be an adapter itself; the base model is then the one that it names. With `merge=False`,
        the adapter is kept beside the weights, which are then not processed: see `with_adapter_scale`.

        The weights are processed by those passes of `jaxlens.weights` that are switched on and valid for the model.
        Log-probabilities stay the same; logits (`center_unembed`) and activations do not. `model.processing` reports
        which passes were applied. `hf_model` is a transformers model whose weights are used instead; the tokenizer is
        still that of `model_name`, or None, with a warning, if it has none.

        With a `mesh`, the weights are divided over its devices by `rules` (see `jaxlens.sharding`), and each device
        receives only its part: the model need not fit on one device.

        Raises:
            CheckpointError: The checkpoint cannot be found, read or understood. Nothing was loaded.
            ValueError: There is no such training checkpoint, or an argument of TransformerLens has a value that jaxlens
                does not support.
        """
        dtype, checkpoint_value = renamed(transformerlens, dtype, checkpoint_value)
        sharding = sharding_of(mesh, rules, device, transformerlens.pop("n_devices", 1))
        device = device if sharding is None else None
        check_only(transformerlens, LOADING)
        target = None if device is None else as_device(device)
        with jax.default_device(target) if isinstance(target, jax.Device) else contextlib.nullcontext():
            loaded = load_pretrained(
                model_name, hf_model, tokenizer=tokenizer, revision=revision, dtype=dtype, n_ctx=n_ctx,
                first_n_layers=first_n_layers, adapter=adapter, merge=merge, sharding=sharding,
                training={"checkpoint_index": checkpoint_index, "checkpoint_value": checkpoint_value},
                hub={"token": token, "cache_dir": cache_dir, "local_files_only": local_files_only},
            )  # fmt: skip
            cfg = loaded.cfg
            if default_prepend_bos is not None:
                cfg = cfg.replace(default_prepend_bos=default_prepend_bos)
            params, cfg, report = process_weights(
                loaded.params, cfg, fold_ln, center_writing_weights, center_unembed, fold_value_biases,
                refactor_factored_attn_matrices, consume=True,
            )  # fmt: skip
        model = cls(
            cfg, loaded.tokenizer, default_padding_side=default_padding_side, params=params, source=loaded.source
        )  # fmt: skip
        model.name, model.processing = loaded.name, report
        model.set_sharding(sharding)
        return model if target is None else model.to(target)

    @classmethod
    def from_pretrained_no_processing(cls, model_name: str, **options: Any) -> "HookedTransformer":
        """`from_pretrained` with every weight as in the checkpoint. Logits equal Hugging Face's."""
        return cls.from_pretrained(model_name, **{**dict.fromkeys(PASSES, False), **options})

    # --- weights

    @property
    def params(self) -> Params:
        """Every weight by name, as one flat dict that optax can train."""
        return disassemble(self.cfg, self.modules)

    def with_params(self, params: Params) -> "HookedTransformer":
        """A copy of the model with other weights, which may be traced, as in a loss function.

        Raises:
            ValueError: A parameter is missing, unknown or of the wrong shape.
        """
        return self._copy(assemble(vars(self)["cfg"], params))

    def set_params(self, params: Params, cfg: Config | None = None) -> None:
        """Replaces the weights in place, and the config if given. They are divided as `sharding` says, if it is set."""
        if cfg is not None:
            self.cfg, self._points = cfg, hook_points(cfg, self._points)
        cfg = vars(self)["cfg"]
        self.modules = assemble(cfg, params if self.sharding is None else self.sharding.place(params, cfg))
        self._report_sharding()

    def set_sharding(self, sharding: Sharding | None) -> None:
        """Divides the weights over the devices of a mesh, in place. None leaves them where they are.

        `processing` lists the weights that are replicated, and why.
        """
        self.sharding = sharding
        self.set_params(self.params)

    def _report_sharding(self) -> None:
        kept = tuple(entry for entry in self.processing if entry.name != "sharding")
        self.processing = kept if self.sharding is None else (*kept, self.sharding.report(vars(self)["cfg"]))

    def _copy(self, modules: Modules) -> "HookedTransformer":
        twin = object.__new__(type(self))
        twin.__dict__.update(self.__dict__, modules=modules, _own_cfg=None)
        return twin

    # --- running

    @overload
    def __call__(
        self, input: Any, return_type: Literal["logits", "loss"] = "logits", loss_per_token: bool = False,
        prepend_bos: bool | None = None, padding_side: Literal["left", "right"] | None = None,
        start_at_layer: int | None = None, tokens: Any = None, attention_mask: Any = None,
        stop_at_layer: int | None = None, hooks: Sequence[HookSpec] | None = None,
        past_kv_cache: TransformerLensKeyValueCache | None = None, **transformerlens: Any,
    ) -> Array: ...  # fmt: skip
    @overload
    def __call__(self, input: Any, return_type: Literal["both"], *args: Any, **kwargs: Any) -> Output: ...
    @overload
    def __call__(self, input: Any, return_type: None, *args: Any, **kwargs: Any) -> Any: ...
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
        hooks: Sequence[HookSpec] | None = None,
        past_kv_cache: TransformerLensKeyValueCache | None = None,
        **transformerlens: Any,
    ) -> Result:
        """Runs the model.

        `input` is a string, a list of strings, or tokens [b p]. With `start_at_layer` it is a residual stream [b p d],
        and earlier layers are skipped. With `stop_at_layer` (exclusive; negative counts from the end) the residual
        stream before that layer is returned. `attention_mask` [b p] is 0 on padding; for strings it is made by the
        tokenizer. Positions count tokens, not padding. With a `past_kv_cache`, the input follows the tokens that it
        holds, and is added to it.

        Returns:
            Logits [b p v], the loss (mean, or [b p-1] with `loss_per_token`), both as an Output, or None.

        Raises:
            ValueError, TypeError: The input is empty, of the wrong rank or type, longer than `cfg.n_ctx`, or holds
                tokens outside the vocabulary. Or the loss is requested, and no token is followed by another.
            HookError: A hook name matches nothing, or a hook returned a value that cannot replace the activation.
        """
        check_only(transformerlens, RUNNING)
        model_input = self.read_input(input, prepend_bos, padding_side, attention_mask, tokens, start_at_layer)
        layers = LayerRange.of(self.cfg, start_at_layer, stop_at_layer)
        request = RunRequest(layers, return_type, loss_per_token)
        hooks = self._hooks + self._registered(hooks, layers)
        return self._run_padded(model_input, request, hooks, past=past_kv_cache)[0]

    forward = __call__

    @overload
    def run_with_hooks(
        self, input: Any, return_type: Literal["logits", "loss"] = "logits", *args: Any, **kwargs: Any
    ) -> Array: ...
    @overload
    def run_with_hooks(self, input: Any, return_type: Literal["both"], *args: Any, **kwargs: Any) -> Output: ...
    @overload
    def run_with_hooks(self, input: Any, return_type: None, *args: Any, **kwargs: Any) -> Any: ...
    def run_with_hooks(
        self, input: Any, *args: Any, fwd_hooks: Sequence[HookSpec] | None = None,
        bwd_hooks: Sequence[HookSpec] | None = None, reset_hooks_end: bool = True, clear_contexts: bool = False,
        **kwargs: Any,
    ) -> Result:  # fmt: skip
        """Runs the model with hooks: `(name or filter function, fn)` pairs, on activations and on their gradients.

        A plain function receives concrete values, layer by layer; under jit, grad or vmap it is traced. The other
        arguments are those of calling the model.
        """
        model_input, request, hooks, past = self._read_call(input, *args, **kwargs)
        added = self._registered(fwd_hooks, request.layers) + self._registered(bwd_hooks, request.layers, "bwd")
        output, _, _ = self._run_padded(model_input, request, self._hooks + added + hooks, past=past)
        if not reset_hooks_end:
            self._hooks += added
        if clear_contexts:
            self.clear_contexts()
        return output

    @overload
    def run_with_cache(
        self, input: Any, return_type: Literal["logits", "loss"] = "logits", *args: Any,
        return_cache_object: Literal[True] = True, **kwargs: Any,
    ) -> tuple[Array, ActivationCache]: ...  # fmt: skip
    @overload
    def run_with_cache(self, input: Any, *args: Any, **kwargs: Any) -> tuple[Any, Any]: ...
    def run_with_cache(
        self, input: Any, *args: Any, names_filter: HookName | list[HookName] | None = None, device: Any = None,
        remove_batch_dim: bool = False, incl_bwd: bool = False, reset_hooks_end: bool = True,
        clear_contexts: bool = False, pos_slice: Any = None, return_cache_object: bool = True, **kwargs: Any,
    ) -> tuple[Result, ActivationCache | dict[str, Array]]:  # fmt: skip
        """Runs the model. Returns its output and its activations: all of them, or those that `names_filter` selects.

        `incl_bwd` adds the gradient of the output (a scalar) at each activation, as `name + "_grad"`. `pos_slice` keeps
        only some positions: an integer keeps one position and the axis, `Slice(integer)` removes the axis. `device` is
        the device of the cache. The other arguments are those of calling the model.

        Raises:
            HookError: `names_filter` matches nothing. The message suggests the nearest names.
            ValueError: `incl_bwd` is set and the output is not a scalar, or `reset_hooks_end` is False.
        """
        if not reset_hooks_end:
            raise ValueError("run_with_cache adds no hooks, so reset_hooks_end must be True; use add_caching_hooks")
        model_input, request, hooks, past = self._read_call(input, *args, **kwargs)
        wanted = request.layers.wanted(self.cfg, names_filter)
        positions = Positions.of(Slice.unwrap(pos_slice), model_input.mask.shape[1], model_input.loss_mask)
        request = dataclasses.replace(request, wanted=wanted, positions=positions)
        run = run_with_gradients if incl_bwd else HookedTransformer.run
        out, captured, length = self._run_padded(model_input, request, self._hooks + hooks, run, past)
        cache = ActivationCache.of(captured, self, length, positions, model_input.loss_mask)
        cache = cache.remove_batch_dim() if remove_batch_dim else cache
        cache = cache if device is None else cache.to(device)
        if clear_contexts:
            self.clear_contexts()
        return out, cache if return_cache_object else dict(cache.items())

    def read_input(
        self, input: Any, prepend_bos: bool | None = None, padding_side: Literal["left", "right"] | None = None,
        attention_mask: Any = None, tokens: Any = None, start_at_layer: int | None = None,
    ) -> ModelInput:  # fmt: skip
        """The input of a call as arrays, checked. The arguments are those of calling the model."""
        return read_input(
            self.cfg, self.tokenizer, input, prepend_bos, padding_side, attention_mask, tokens, start_at_layer
        )

    def _read_call(self, *args: Any, **kwargs: Any) -> tuple[ModelInput, RunRequest, tuple[RegisteredHook, ...], Any]:
        """The input, the request, the hooks and the KV cache in the arguments of calling the model."""
        bound = _CALL.bind(self, *args, **kwargs)
        bound.apply_defaults()
        given = bound.arguments
        check_only(given["transformerlens"], RUNNING)
        model_input = self.read_input(
            given["input"], given["prepend_bos"], given["padding_side"], given["attention_mask"], given["tokens"],
            given["start_at_layer"],
        )  # fmt: skip
        layers = LayerRange.of(self.cfg, given["start_at_layer"], given["stop_at_layer"])
        request = RunRequest(layers, given["return_type"], given["loss_per_token"])
        return model_input, request, self._registered(given["hooks"], layers), given["past_kv_cache"]

    def _registered(
        self, hooks: Sequence[HookSpec] | None, layers: LayerRange, direction: Direction = "fwd"
    ) -> tuple[RegisteredHook, ...]:
        """The hooks of a single call, each of which must act in these layers."""
        added = tuple(register(self.cfg, name, fn, direction, level=self._level) for name, fn in hook_specs(hooks))
        layers.check_hooks(added)
        return added

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


_CALL = inspect.signature(HookedTransformer.__call__)
