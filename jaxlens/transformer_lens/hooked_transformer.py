"""TransformerLens's module `HookedTransformer`: the model, and the types of what a call returns."""

import jax
import jax.numpy as jnp

from jaxlens.config import DTYPES
from jaxlens.model.transformer import HookedTransformer, Output, parameter_shapes

__all__ = ["DTYPE_FROM_STRING", "HookedTransformer", "Loss", "LossPerToken", "Output", "SingleLoss", "parameter_shapes"]

SingleLoss = LossPerToken = Loss = jax.Array
DTYPE_FROM_STRING = {name: jnp.dtype(name) for name in DTYPES}
"""The dtypes that a model may have, by name."""
