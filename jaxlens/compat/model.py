"""What TransformerLens's model can do that needs no place in jaxlens's: torch's habits, switches, caching hooks."""

import dataclasses
from collections.abc import Callable, Collection, Iterator, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from jaxlens import weights
from jaxlens.config import DTYPES, Config
from jaxlens.devices import as_device
from jaxlens.hook_table import exists, matching, sites
from jaxlens.parameters import Params, assemble, init_parameters, parameter_axes
from jaxlens.slices import Slice
from jaxlens.state_dict import from_state_dict, to_state_dict

NamesFilter = str | Collection[str] | Callable[[str], bool] | None


class InputToEmbed(NamedTuple):
    """What `input_to_embed` gives."""

    residual: jax.Array
    tokens: jax.Array
    shortformer_pos_embed: None
    attention_mask: jax.Array | None


class TransformerLensMethods:
    """Mixin: methods of TransformerLens's HookedTransformer by their names.

    What a switch turns on is there for whoever asks for it, switch or not; with it, it is in every cache. Those of
    torch's modules that have something to do do it in place, and the others do nothing: a model here is the same in
    training and evaluation, and keeps no gradients.
    """

    cfg: Config
    params: Params

    # --- switches

    def set_use_attn_result(self, use_attn_result: bool) -> None:
        """Whether what each head writes, `hook_result`, is in every cache, or only in those that are asked for it."""
        self.cfg = dataclasses.replace(self.cfg, use_attn_result=use_attn_result)

    def set_use_split_qkv_input(self, use_split_qkv_input: bool) -> None:
        """Whether `hook_q_input`, `hook_k_input` and `hook_v_input` are in every cache."""
        self.cfg = dataclasses.replace(self.cfg, use_split_qkv_input=use_split_qkv_input)

    def set_use_hook_mlp_in(self, use_hook_mlp_in: bool) -> None:
        """Whether `hook_mlp_in` is in every cache."""
        self.cfg = dataclasses.replace(self.cfg, use_hook_mlp_in=use_hook_mlp_in)

    def set_use_attn_in(self, use_attn_in: bool) -> None:
        """Whether `hook_attn_in`, which exists where every head has its own keys, is in every cache."""
        self.cfg = dataclasses.replace(self.cfg, use_attn_in=use_attn_in)

    def set_ungroup_grouped_query_attention(self, ungroup_grouped_query_attention: bool) -> None:
        """Gives every query head keys and values of its own, in place, so that `hook_k` and `hook_v` have them all.

        The model computes the same. There is no way back: False is for a model that was never ungrouped.
        """
        if ungroup_grouped_query_attention and self.cfg.n_key_value_heads != self.cfg.n_heads:
            self._put_params(*_ungrouped(self.params, self.cfg))

    # --- torch's modules

    training = False

    def eval(self) -> Any:
        """Does nothing, and gives the model."""
        return self

    def train(self, mode: bool = True) -> Any:
        """Does nothing, and gives the model."""
        return self

    def requires_grad_(self, requires_grad: bool = True) -> Any:
        """Does nothing, and gives the model: JAX differentiates by what `jax.grad` is asked for."""
        return self

    def zero_grad(self, set_to_none: bool = True) -> None:
        """Does nothing: gradients are values that functions return, kept nowhere."""

    def named_parameters(self) -> Iterator[tuple[str, jax.Array]]:
        """Every weight and its name in TransformerLens, layer by layer."""
        return iter(to_state_dict(self.params, self.cfg).items())

    def parameters(self) -> Iterator[jax.Array]:
        """Every weight, layer by layer; an optimiser wants `params`, where those of all layers lie together."""
        return (weight for _, weight in self.named_parameters())

    def to(self, device_or_dtype: Any, print_details: bool = True) -> Any:
        """Moves the weights to a device ("cpu", "cuda:1", a `jax.Device` or sharding) or casts them, in place.

        Raises:
            ValueError: there is no such device.
        """
        if _is_dtype(device_or_dtype):
            cfg = self.cfg.replace(dtype=device_or_dtype)
            self._put_params({name: w.astype(cfg.dtype) for name, w in self.params.items()}, cfg)
        else:
            self._put_params(jax.device_put(self.params, as_device(device_or_dtype)), self.cfg)
        return self

    def cuda(self, device: int | None = None) -> Any:
        """Moves the weights to a GPU, in place."""
        return self.to("cuda" if device is None else f"cuda:{device}")

    def cpu(self) -> Any:
        """Moves the weights to the CPU, in place."""
        return self.to("cpu")

    def init_weights(self) -> None:
        """Draws the first weights again, from `cfg.seed`, in place."""
        self._put_params(init_parameters(self.cfg, self.cfg.seed or 0), self.cfg)

    def _tokenizer_of_config(self) -> Any:
        """The tokenizer that the config names by a Hugging Face id or a folder, or None."""
        if self.cfg.tokenizer_name is None:
            return None
        from transformers import AutoTokenizer  # takes seconds to import

        return AutoTokenizer.from_pretrained(self.cfg.tokenizer_name)

    def _put_params(self, params: Params, cfg: Config) -> None:
        self.cfg, self.parts = cfg, assemble(cfg, params)

    @property
    def mod_dict(self) -> dict[str, Any]:
        """Hook points and parts by name."""
        parts = {name: part for name in ("embed", "pos_embed", "ln_final", "unembed") if (part := getattr(self, name))}
        for layer in self.blocks:
            places = ["attn"] + [name for name in ("ln1", "ln2", "mlp") if getattr(layer.part, name) is not None]
            parts |= {layer.name: layer} | {f"{layer.name}.{place}": getattr(layer, place) for place in places}
        return parts | self.hook_dict

    # --- running

    def input_to_embed(
        self, input: Any, prepend_bos: bool | None = None, padding_side: Any = None, attention_mask: Any = None
    ) -> InputToEmbed:
        """The residual stream that the first layer reads, the tokens, and the mask of their padding if there is one."""
        given = self._read_input(input, prepend_bos, padding_side, attention_mask)
        residual = self(input, None, False, prepend_bos, padding_side, attention_mask=attention_mask, stop_at_layer=0)
        return InputToEmbed(residual, given.tokens, None, given.mask)

    def get_caching_hooks(
        self, names_filter: NamesFilter = None, incl_bwd: bool = False, device: Any = None,
        remove_batch_dim: bool = False, cache: dict[str, jax.Array] | None = None, pos_slice: Any = None,
    ) -> tuple[dict[str, jax.Array], list[tuple[str, Callable]], list]:  # fmt: skip
        """A dict, and the forward hooks that fill it when the model runs; the hooks are not added to the model.

        Raises:
            ValueError: `incl_bwd`; `run_with_cache` keeps gradients.
        """
        if incl_bwd:
            raise ValueError("hooks cannot keep gradients, which pass when a whole run is differentiated: use "
                             "run_with_cache(..., incl_bwd=True), or jax.grad")  # fmt: skip
        cache = {} if cache is None else cache
        positions = Slice.unwrap(pos_slice)

        def store(value, hook):
            site = hook.name.split(".", 2)[-1] if hook.name.startswith("blocks.") else hook.name
            value = positions.cut(site, value)
            value = value[0] if remove_batch_dim else value
            cache[hook.name] = value if device is None else jax.device_put(value, as_device(device))

        return cache, [(name, store) for name in self._names(names_filter)], []

    def add_caching_hooks(
        self, names_filter: NamesFilter = None, incl_bwd: bool = False, device: Any = None,
        remove_batch_dim: bool = False, cache: dict[str, jax.Array] | None = None,
    ) -> dict[str, jax.Array]:  # fmt: skip
        """Adds hooks that store activations, and gives the dict that the next runs fill.

        Raises:
            ValueError: `incl_bwd`; `run_with_cache` keeps gradients.
        """
        cache, hooks, _ = self.get_caching_hooks(names_filter, incl_bwd, device, remove_batch_dim, cache)
        for name, store in hooks:
            self.add_hook(name, store)
        return cache

    def _names(self, names_filter: NamesFilter) -> list[str]:
        if names_filter is None:
            return [name for name in sites(self.cfg) if exists(self.cfg, name)]
        filters = [names_filter] if isinstance(names_filter, str) or callable(names_filter) else names_filter
        return [name for one in filters for name in matching(self.cfg, one)]

    # --- processing state dicts

    def fold_layer_norm(self, state_dict: Mapping[str, Any]) -> dict[str, jax.Array]:
        """`jaxlens.weights.fold_ln` of a state dict; the norms in it become ones and zeros."""
        return self._processed_state_dict(weights.fold_ln, state_dict)

    def center_writing_weights(self, state_dict: Mapping[str, Any]) -> dict[str, jax.Array]:
        """`jaxlens.weights.center_writing_weights` of a state dict."""
        return self._processed_state_dict(weights.center_writing_weights, state_dict)

    def center_unembed(self, state_dict: Mapping[str, Any]) -> dict[str, jax.Array]:
        """`jaxlens.weights.center_unembed` of a state dict."""
        return self._processed_state_dict(weights.center_unembed, state_dict)

    def fold_value_biases(self, state_dict: Mapping[str, Any]) -> dict[str, jax.Array]:
        """`jaxlens.weights.fold_value_biases` of a state dict."""
        return self._processed_state_dict(weights.fold_value_biases, state_dict)

    def refactor_factored_attn_matrices(self, state_dict: Mapping[str, Any]) -> dict[str, jax.Array]:
        """`jaxlens.weights.refactor_factored_attn_matrices` of a state dict."""
        return self._processed_state_dict(weights.refactor_factored_attn_matrices, state_dict)

    def _processed_state_dict(self, one_pass: Callable, state_dict: Mapping[str, Any]) -> dict[str, jax.Array]:
        params, cfg = from_state_dict(state_dict, self.cfg)
        found = to_state_dict(*one_pass(params, cfg)[:2])
        gone = {name: jnp.asarray(state_dict[name]) for name in state_dict if name not in found}
        one = not cfg.rmsnorm_uses_offset
        whole = {name: jnp.full_like(w, name.endswith(".w") and one) for name, w in gone.items()}
        return whole | found


def _ungrouped(params: Params, cfg: Config) -> tuple[Params, Config]:
    """The weights of a model that computes the same and whose every query head has its own keys and values."""
    times, found = cfg.n_heads // cfg.n_key_value_heads, {}
    for name, letters in parameter_axes(cfg).items():
        axes = letters.split()
        found[name] = jnp.repeat(params[name], times, axes.index("k")) if "k" in axes else params[name]
    return found, cfg.replace(n_key_value_heads=None)


def _is_dtype(device_or_dtype: Any) -> bool:
    name = getattr(device_or_dtype, "__name__", None) or getattr(device_or_dtype, "name", None) or str(device_or_dtype)
    return name in DTYPES
