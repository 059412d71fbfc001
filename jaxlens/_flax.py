"""The base class of the package's Flax modules."""

from typing import Any

import jax
from flax import nnx

OF_FLAX = frozenset(("_pytree__state", "_pytree__nodes"))
"""The attributes that Flax adds to a module."""


class FlaxModule(nnx.Module, pytree=False):
    """An `nnx.Module` that defines its own pytree, by `tree_flatten` and `tree_unflatten`.

    Flax's pytrees sort the attributes in every call, and compare what Flax notes about an object by identity.
    """

    def __init_subclass__(cls, **kwargs: Any):
        super().__init_subclass__(pytree=False, **kwargs)
        jax.tree_util.register_pytree_with_keys_class(cls)

    def _attributes(self) -> dict[str, Any]:
        """The attributes of the module, without those of Flax."""
        return {name: value for name, value in vars(self).items() if name not in OF_FLAX}

    def _check_valid_context(self, error_msg: Any) -> None:
        """Allows changes under a transformation: a traced function may add hooks to a model. A Param refuses them."""

    def _graph_node_flatten(self):
        return sorted(self._attributes().items()), type(self)
