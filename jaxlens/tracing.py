"""Whether values are concrete or a transformation (jit, grad, vmap) is looking at them."""

import jax


def is_traced(*trees) -> bool:
    """Whether any array in `trees` is a tracer: whether a transformation is looking at this computation."""
    return any(isinstance(leaf, jax.Array) and not _is_concrete(leaf) for leaf in jax.tree.leaves(trees))


def _is_concrete(array: jax.Array) -> bool:
    try:
        return array.is_fully_addressable or True
    except jax.errors.ConcretizationTypeError:
        return False
