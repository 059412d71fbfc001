"""TransformerLens's `weight_processing`: the passes of weight processing, on state dicts."""

from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

from jaxlens import weights
from jaxlens._jax import full_precision
from jaxlens.config import Config
from jaxlens.model.state_dict import processed_state_dict
from jaxlens.transformer_lens.absent import READS_FILES

StateDict = dict[str, jax.Array]
PASSES = (
    "fold_ln", "center_writing_weights", "center_unembed", "fold_value_biases", "refactor_factored_attn_matrices"
)  # fmt: skip
"""The passes, in the order in which they are applied."""


class ProcessWeights:
    """The passes of weight processing, as functions of a state dict and its config. The state dict is not changed.

    Example:
        >>> from jaxlens import HookedTransformer
        >>> cfg = Config(n_layers=1, d_model=8, n_heads=2, d_head=4, d_vocab=10, n_ctx=8)
        >>> model = HookedTransformer(cfg)
        >>> centered = ProcessWeights.center_unembed(model.state_dict(), cfg)
        >>> bool(abs(centered["unembed.W_U"].mean(-1)).max() < 1e-6)
        True
    """

    @staticmethod
    def fold_layer_norm(
        state_dict: Mapping[str, Any], cfg: Config, fold_biases: bool = True, center_weights: bool = True,
        adapter: None = None,
    ) -> StateDict:  # fmt: skip
        """`jaxlens.weights.fold_ln`. The config says which norms have biases and are centered."""
        _check(adapter)
        expected = not cfg.uses_rms_norm
        if (fold_biases, center_weights) not in ((True, True), (expected, expected)):
            raise ValueError(
                f"fold_biases={fold_biases} and center_weights={center_weights} are not supported; omit them: the "
                "folding of a LayerNorm is exact only with both, and that of an RMSNorm with neither"
            )
        return processed_state_dict(weights.fold_ln, state_dict, cfg)

    @staticmethod
    def center_writing_weights(state_dict: Mapping[str, Any], cfg: Config, adapter: None = None) -> StateDict:
        """`jaxlens.weights.center_writing_weights`."""
        _check(adapter)
        return processed_state_dict(weights.center_writing_weights, state_dict, cfg)

    @staticmethod
    def center_unembed(state_dict: Mapping[str, Any], cfg: Config | None = None, adapter: None = None) -> StateDict:
        """`jaxlens.weights.center_unembed`. It needs the config."""
        _check(adapter)
        if cfg is None:
            raise ValueError("cfg is None; pass the config of the state dict, which says if the logits are capped")
        return processed_state_dict(weights.center_unembed, state_dict, cfg)

    @staticmethod
    def fold_value_biases(state_dict: Mapping[str, Any], cfg: Config, adapter: None = None) -> StateDict:
        """`jaxlens.weights.fold_value_biases`."""
        _check(adapter)
        return processed_state_dict(weights.fold_value_biases, state_dict, cfg)

    @staticmethod
    def refactor_factored_attn_matrices(state_dict: Mapping[str, Any], cfg: Config, adapter: None = None) -> StateDict:
        """`jaxlens.weights.refactor_factored_attn_matrices`."""
        _check(adapter)
        return processed_state_dict(weights.refactor_factored_attn_matrices, state_dict, cfg)

    @staticmethod
    def process_weights(
        state_dict: Mapping[str, Any], cfg: Config, fold_ln: bool = True, center_writing_weights: bool = True,
        center_unembed: bool = True, fold_value_biases: bool = True, refactor_factored_attn_matrices: bool = False,
        adapter: None = None,
    ) -> StateDict:  # fmt: skip
        """Every pass that is switched on and valid for the model, in the order of `from_pretrained`."""
        _check(adapter)
        on = (fold_ln, center_writing_weights, center_unembed, fold_value_biases, refactor_factored_attn_matrices)
        return processed_state_dict(lambda *given: weights.process_weights(*given, *on), state_dict, cfg)

    # --- the arithmetic for one weight

    @staticmethod
    @full_precision()
    def fold_layer_norm_bias_single(
        w_tensor: Float[Array, "n d h"], b_tensor: Float[Array, "n h"], ln_bias: Float[Array, " d"]
    ) -> Float[Array, "n h"]:
        """The bias of heads that read a norm without its bias."""
        return b_tensor + jnp.einsum("ndh,d->nh", w_tensor, ln_bias)

    @staticmethod
    def fold_layer_norm_weight_single(
        w_tensor: Float[Array, "n d h"], ln_weight: Float[Array, " d"]
    ) -> Float[Array, "n d h"]:
        """The weight of heads that read a norm without its weight."""
        return w_tensor * ln_weight[:, None]

    @staticmethod
    def center_weight_single(w_tensor: Float[Array, "n d h"]) -> Float[Array, "n d h"]:
        """The weight without its mean over the residual stream."""
        return w_tensor - w_tensor.mean(-2, keepdims=True)


def _check(adapter: Any) -> None:
    if adapter is not None:
        raise ValueError(f"adapter is a {type(adapter).__name__}; jaxlens has none. {READS_FILES}")
