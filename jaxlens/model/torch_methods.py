"""Methods of HookedTransformer that torch code and TransformerLens code expect: devices, dtypes, caching hooks."""

from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlens import weights
from jaxlens._jax import as_device, is_traced
from jaxlens.config import DTYPES, Config
from jaxlens.errors import HookError
from jaxlens.hooks.names import is_cached_by_default, matching
from jaxlens.hooks.recording import OldCachingNames
from jaxlens.hooks.slice import Slice
from jaxlens.hooks.table import POSITION_AXES, sites
from jaxlens.model.state_dict import processed_state_dict, to_state_dict
from jaxlens.nn.parameters import Params, init_parameters, parameter_axes
from jaxlens.weights.circuits import per_query_head

NamesFilter = str | Collection[str] | Callable[[str], bool] | None


class InputToEmbed(NamedTuple):
    """The result of `input_to_embed`."""

    residual: jax.Array
    tokens: jax.Array
    shortformer_pos_embed: None
    attention_mask: jax.Array | None


class TorchMethods(OldCachingNames):
    """Mixin of HookedTransformer: methods that code written for torch and TransformerLens calls.

    Methods that move or cast the model work in place. Those for training mode and gradients do nothing, because a JAX
    model has no modes and stores no gradients.
    """

    cfg: Config
    params: Params

    # --- torch's modules

    training = False

    def eval(self) -> Any:
        """Returns the model unchanged. It has no dropout and no training mode."""
        return self

    def train(self, mode: bool = True) -> Any:
        """Returns the model unchanged. It has no dropout and no training mode."""
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Does nothing and returns the model: `jax.grad` decides what is differentiated."""
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Does nothing: in JAX gradients are return values and are stored nowhere."""

    def named_parameters(self) -> Iterator[tuple[str, jax.Array]]:
        """Every weight with its TransformerLens name, layer by layer."""
        return iter(to_state_dict(self.params, self.cfg).items())

    def parameters(self) -> Iterator[jax.Array]:
        """Every weight, layer by layer. For an optimizer use `params`, which stacks the layers."""
        return (weight for _, weight in self.named_parameters())

    def to(self, device_or_dtype: Any, print_details: bool = True) -> Any:
        """Moves the weights to a device ("cpu", "cuda:1", a `jax.Device` or sharding) or casts them, in place.

        `cfg.device` is then this device.

        Raises:
            ValueError: There is no such device, or the sharding does not fit every parameter.
        """
        if _is_dtype(device_or_dtype):
            cfg = self.cfg.replace(dtype=device_or_dtype)
            self.set_params({name: w.astype(cfg.dtype) for name, w in self.params.items()}, cfg)
        else:
            target = as_device(device_or_dtype)
            placed = {name: _placed(name, weight, target) for name, weight in self.params.items()}
            self.sharding = None
            self.set_params(placed, self.cfg.replace(weights_on=target if isinstance(target, jax.Device) else None))
        return self

    def cuda(self, device: int | None = None) -> Any:
        """Moves the weights to a GPU, in place."""
        return self.to("cuda" if device is None else f"cuda:{device}")

    def cpu(self) -> Any:
        """Moves the weights to the CPU, in place."""
        return self.to("cpu")

    def init_weights(self) -> None:
        """Draws the initial weights again from `cfg.seed`, in place."""
        with jax.default_device(self.cfg.device):
            self.set_params(init_parameters(self.cfg, self.cfg.seed or 0), self.cfg)

    @property
    def mod_dict(self) -> dict[str, Any]:
        """Hook points and modules by name."""
        views = {name: view for name in ("embed", "pos_embed", "ln_final", "unembed") if (view := getattr(self, name))}
        for block in self.blocks:
            names = ["attn"] + [name for name in ("ln1", "ln2", "mlp") if getattr(block.module, name) is not None]
            views |= {block.name: block} | {f"{block.name}.{name}": getattr(block, name) for name in names}
        return views | self.hook_dict

    def set_ungroup_grouped_query_attention(self, ungroup_grouped_query_attention: bool) -> None:
        """Repeats keys and values in place, one per query head, so that `hook_k` and `hook_v` have an entry per head.

        Outputs do not change. This cannot be undone; False does nothing.
        """
        if ungroup_grouped_query_attention and self.cfg.n_key_value_heads != self.cfg.n_heads:
            self.set_params(*_ungrouped(self.params, self.cfg))

    # --- running

    def input_to_embed(
        self, input: Any, prepend_bos: bool | None = None, padding_side: Any = None, attention_mask: Any = None
    ) -> InputToEmbed:
        """The residual stream before the first layer, the tokens, and the mask of padding, if any."""
        model_input = self.read_input(input, prepend_bos, padding_side, attention_mask)
        residual = self(input, None, False, prepend_bos, padding_side, attention_mask=attention_mask, stop_at_layer=0)
        tokens, mask = jax.tree.map(jnp.asarray, (model_input.tokens, model_input.loss_mask))
        return InputToEmbed(residual, tokens, None, mask)

    def get_caching_hooks(
        self, names_filter: NamesFilter = None, incl_bwd: bool = False, device: Any = None,
        remove_batch_dim: bool = False, cache: dict[str, jax.Array] | None = None, pos_slice: Any = None,
    ) -> tuple[dict[str, jax.Array], list[tuple[str, Callable]], list]:  # fmt: skip
        """A dict, the forward hooks that fill it when the model runs, and an empty list of backward hooks.

        The hooks are not added to the model. They store concrete values only: in a run under jit, grad or vmap they
        raise a HookError.

        Raises:
            ValueError: `incl_bwd` is set. Use `run_with_cache` for gradients.
        """
        if incl_bwd:
            raise ValueError("caching hooks cannot store gradients; use run_with_cache(..., incl_bwd=True) or jax.grad")
        cache = {} if cache is None else cache
        positions = Slice.unwrap(pos_slice)

        def store(value, hook):
            if is_traced(value):
                where = f"the value at {hook.name!r} is traced (jit, grad or vmap)"
                raise HookError(f"caching hooks store concrete values, but {where}; return the cache of run_with_cache")
            site = hook.name.split(".", 2)[-1] if hook.name.startswith("blocks.") else hook.name
            value = positions.apply(value, POSITION_AXES[site])
            value = value[0] if remove_batch_dim else value
            cache[hook.name] = value if device is None else jax.device_put(value, as_device(device))

        return cache, [(name, store) for name in self._names(names_filter)], []

    def add_caching_hooks(
        self, names_filter: NamesFilter = None, incl_bwd: bool = False, device: Any = None,
        remove_batch_dim: bool = False, cache: dict[str, jax.Array] | None = None,
    ) -> dict[str, jax.Array]:  # fmt: skip
        """Adds the hooks of `get_caching_hooks` to the model, and returns the dict that later runs fill."""
        cache, hooks, _ = self.get_caching_hooks(names_filter, incl_bwd, device, remove_batch_dim, cache)
        for name, store in hooks:
            self.add_hook(name, store)
        return cache

    def _names(self, names_filter: NamesFilter) -> list[str]:
        if names_filter is None:
            return [name for name in sites(self.cfg) if is_cached_by_default(self.cfg, name)]
        filters = [names_filter] if isinstance(names_filter, str) or callable(names_filter) else names_filter
        return [name for each in filters for name in matching(self.cfg, each)]

    # --- processing state dicts

    def fold_layer_norm(self, state_dict: Mapping[str, Any]) -> dict[str, jax.Array]:
        """`jaxlens.weights.fold_ln` of a state dict. The weights of its norms become ones and zeros."""
        return processed_state_dict(weights.fold_ln, state_dict, self.cfg)

    def center_writing_weights(self, state_dict: Mapping[str, Any]) -> dict[str, jax.Array]:
        """`jaxlens.weights.center_writing_weights` of a state dict."""
        return processed_state_dict(weights.center_writing_weights, state_dict, self.cfg)

    def center_unembed(self, state_dict: Mapping[str, Any]) -> dict[str, jax.Array]:
        """`jaxlens.weights.center_unembed` of a state dict."""
        return processed_state_dict(weights.center_unembed, state_dict, self.cfg)

    def fold_value_biases(self, state_dict: Mapping[str, Any]) -> dict[str, jax.Array]:
        """`jaxlens.weights.fold_value_biases` of a state dict."""
        return processed_state_dict(weights.fold_value_biases, state_dict, self.cfg)

    def refactor_factored_attn_matrices(self, state_dict: Mapping[str, Any]) -> dict[str, jax.Array]:
        """`jaxlens.weights.refactor_factored_attn_matrices` of a state dict."""
        return processed_state_dict(weights.refactor_factored_attn_matrices, state_dict, self.cfg)


def _ungrouped(params: Params, cfg: Config) -> tuple[Params, Config]:
    """The weights of an equivalent model without grouped keys and values."""
    ungrouped = {}
    for name, letters in parameter_axes(cfg).items():
        axes = letters.split()
        ungrouped[name] = per_query_head(cfg, params[name], axes.index("k")) if "k" in axes else params[name]
    return ungrouped, cfg.replace(n_key_value_heads=None)


def _placed(name: str, weight: jax.Array, target: jax.Device | jax.sharding.Sharding) -> jax.Array:
    try:
        return jax.device_put(weight, target)
    except (ValueError, AssertionError) as error:  # on a mesh with Explicit axes, JAX asserts that the axes fit
        instead = "For a sharding of each parameter, use jaxlens.sharding.shard(model, mesh, rules)"
        expected = f"expected a device or a sharding that fits every parameter. {instead}"
        raise ValueError(f"{target} does not fit {name}, of shape {weight.shape}; {expected}") from error


def _is_dtype(device_or_dtype: Any) -> bool:
    name = getattr(device_or_dtype, "__name__", None) or getattr(device_or_dtype, "name", None) or str(device_or_dtype)
    return name in DTYPES
