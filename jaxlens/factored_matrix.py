"""Low-rank matrices kept as a product of two thin ones, and how strongly such matrices compose.

Axes: l rows (ldim), m the inner dimension (mdim), r columns (rdim); i the leading axes of a left matrix, j of a right
one.
"""

import warnings
from collections.abc import Callable
from numbers import Number
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Complex, Float

from jaxlens.tracing import is_traced

STRIP = 2**24
"""How many entries of Gram matrices `composition_scores` holds at a time: 64 MiB of float32."""


@jax.tree_util.register_pytree_node_class
class FactoredMatrix:
    """The matrix `A @ B` [... l r] of rank m or less, which is never formed unless `AB` asks for it.

    A head's circuits are such matrices: the OV circuit `W_V @ W_O` is d_model × d_model and has rank d_head (Elhage et
    al. 2021, transformer-circuits.pub/2021/framework). Products with matrices, vectors and other factored matrices,
    from either side, are associated so that the smaller inner dimension is kept. Leading axes broadcast. It is a pytree
    of its two factors: jit, vmap and grad pass through it.

    Example:
        >>> circuit = FactoredMatrix(jnp.ones((5, 100, 2)), jnp.ones((5, 2, 100)))
        >>> circuit
        FactoredMatrix: Shape((5, 100, 100)), Hidden Dim(2)
        >>> (jnp.ones((7, 100)) @ circuit)[2].AB.shape, circuit.norm().shape, circuit.eigenvalues.shape
        ((7, 100), (5,), (5, 2))

    Raises:
        ValueError: the factors are not matrices, or do not fit each other.
    """

    __array_ufunc__ = None  # numpy arrays leave `array @ factored` and `scalar * factored` to this class

    def __init__(self, A: Float[Array, "... l m"], B: Float[Array, "... m r"]):
        A, B = jnp.asarray(A), jnp.asarray(B)
        if A.ndim < 2 or B.ndim < 2 or A.shape[-1] != B.shape[-2]:
            raise ValueError(f"the factors must be [... l m] and [... m r]; got shapes {A.shape} and {B.shape}")
        leading = _broadcast(A.shape[:-2], B.shape[:-2])
        self.A = jnp.broadcast_to(A, leading + A.shape[-2:])
        self.B = jnp.broadcast_to(B, leading + B.shape[-2:])
        self._svd = None

    def tree_flatten(self):
        return (self.A, self.B), None

    @classmethod
    def tree_unflatten(cls, _, children):
        twin = object.__new__(cls)
        (twin.A, twin.B), twin._svd = children, None
        return twin

    # --- its shape

    ldim = property(lambda self: self.A.shape[-2], doc="How many rows it has.")
    mdim = property(lambda self: self.A.shape[-1], doc="The inner dimension: the largest rank it can have.")
    rdim = property(lambda self: self.B.shape[-1], doc="How many columns it has.")
    shape = property(lambda self: (*self.A.shape[:-1], self.rdim), doc="The shape of the product.")
    ndim = property(lambda self: self.A.ndim, doc="How many axes it has.")
    has_leading_dims = property(lambda self: self.ndim > 2, doc="Whether it is a stack of matrices.")
    pair = property(lambda self: (self.A, self.B), doc="The two factors.")

    def __repr__(self) -> str:
        return f"FactoredMatrix: Shape({self.shape}), Hidden Dim({self.mdim})"

    # --- products

    @property
    def AB(self) -> Float[Array, "... l r"]:
        """The product itself, as large as it is."""
        return _matmul(self.A, self.B)

    @property
    def BA(self) -> Float[Array, "... m m"]:
        """The factors multiplied the other way round, of a square matrix."""
        if self.ldim != self.rdim:
            raise ValueError(f"BA needs as many rows as columns; the shape is {self.shape}")
        return _matmul(self.B, self.A)

    @property
    def T(self) -> "FactoredMatrix":
        """The transpose of every matrix; leading axes stay."""
        return FactoredMatrix(self.B.mT, self.A.mT)

    def __matmul__(self, other: Any) -> "FactoredMatrix | Array":
        """Times a matrix or factored matrix: a FactoredMatrix. Times a vector [r]: an array [... l]."""
        if isinstance(other, FactoredMatrix):
            return (self @ other.A) @ other.B
        other = self._operand(other, -1 if np.ndim(other) < 2 else -2, self.rdim, "right")
        if other.ndim == 1:
            return _einsum("...lm,...mr,r->...l", self.A, self.B, other)
        if self.rdim > self.mdim:
            return FactoredMatrix(self.A, _matmul(self.B, other))
        return FactoredMatrix(self.AB, other)

    def __rmatmul__(self, other: Any) -> "FactoredMatrix | Array":
        """A matrix times this: a FactoredMatrix. A vector [l] times this: an array [... r]."""
        other = self._operand(other, -1, self.ldim, "left")
        if other.ndim == 1:
            return _einsum("l,...lm,...mr->...r", other, self.A, self.B)
        if self.ldim > self.mdim:
            return FactoredMatrix(_matmul(other, self.A), self.B)
        return FactoredMatrix(other, self.AB)

    def _operand(self, other: Any, axis: int, length: int, side: str) -> Array:
        other = jnp.asarray(other)
        if other.ndim == 0 or other.shape[axis] != length:
            raise ValueError(f"the matrix on the {side} has shape {other.shape}, which does not fit {self.shape}")
        return other

    def __mul__(self, scalar: Number | Array) -> "FactoredMatrix":
        """Times a number."""
        scalar = jnp.asarray(scalar)
        if scalar.size != 1:
            raise ValueError(f"* takes a number; got shape {scalar.shape}. Write @ for a product of matrices")
        return FactoredMatrix(self.A * scalar.reshape(()), self.B)

    __rmul__ = __mul__

    # --- parts of it

    def __getitem__(self, index: Any) -> "FactoredMatrix":
        """Some of its matrices, and of their rows and columns, as a FactoredMatrix; a single row or column stays one.

        Otherwise an index means what it means for an array of its shape. Rows and columns are chosen independently.

        Raises:
            IndexError: there are more indices than axes, or one is out of range. (JAX itself would take the last.)
        """
        *leading, rows, columns = _indices(index, self.shape)
        A, B = self.A[tuple(leading)], self.B[tuple(leading)]
        return FactoredMatrix(A[..., rows, :], B[..., columns])

    def get_corner(self, k: int = 3) -> Array:
        """The first k entries along every axis, as an array."""
        return self[(slice(k),) * self.ndim].AB

    def unsqueeze(self, k: int) -> "FactoredMatrix":
        """With a leading axis of length one at place `k`."""
        if not (0 <= k <= self.ndim - 2 or -self.ndim - 1 <= k <= -3):
            raise ValueError(f"a new axis can stand at 0 to {self.ndim - 2}, before rows and columns; got {k}")
        return FactoredMatrix(jnp.expand_dims(self.A, k), jnp.expand_dims(self.B, k))

    # --- what it does

    def svd(self) -> tuple[Float[Array, "... l k"], Float[Array, "... k"], Float[Array, "... r k"]]:
        """U, S and V with `U @ diag(S) @ V.T` the matrix, k the smallest of l, m and r; in float32 at least.

        Two QR decompositions and a decomposition of the m × m matrix between them; it is done once and kept.
        """
        if self._svd is not None:
            return self._svd
        found = _svd(self.A, self.B)
        if not is_traced(found):
            self._svd = found
        return found

    U = property(lambda self: self.svd()[0], doc="Left singular vectors [... l k], one a column.")
    S = property(lambda self: self.svd()[1], doc="Singular values [... k], the largest first.")
    V = property(lambda self: self.svd()[2], doc="Right singular vectors [... r k], one a column.")

    @property
    def Vh(self) -> Float[Array, "... r k"]:
        """TransformerLens's former name of `V`. It is V, not its transpose."""
        warnings.warn("FactoredMatrix.Vh is V and not its transpose; write .V", DeprecationWarning, stacklevel=2)
        return self.V

    def norm(self) -> Float[Array, "..."]:
        """The Frobenius norm of every matrix."""
        return _norm(self.A, self.B)

    @property
    def eigenvalues(self) -> Complex[Array, "... m"]:
        """The eigenvalues that can differ from zero, in no particular order: those of the m × m matrix `BA`."""
        return _eigenvalues(self.BA)

    def make_even(self) -> "FactoredMatrix":
        """The same matrix with its singular values shared out: `U √S` and `√S Vᵀ`, both orthogonal up to lengths."""
        U, S, V = self.svd()
        return FactoredMatrix(U * jnp.sqrt(S)[..., None, :], jnp.sqrt(S)[..., :, None] * V.mT)

    def collapse_l(self) -> Float[Array, "... k r"]:
        """The matrix without its orthogonal left factor: `S Vᵀ`."""
        return self.S[..., :, None] * self.V.mT

    def collapse_r(self) -> Float[Array, "... l k"]:
        """The matrix without its orthogonal right factor: `U S`."""
        return self.U * self.S[..., None, :]


def _broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError as error:
        raise ValueError(f"the leading axes {' and '.join(map(str, shapes))} do not broadcast") from error


def _einsum(letters: str, *arrays: Array) -> Array:
    """A contraction in the precision of its numbers, on accelerators too, unless the caller has chosen another."""
    return jnp.einsum(letters, *arrays, precision=None if jax.config.jax_default_matmul_precision else "highest")


def _matmul(a: Float[Array, "... l m"], b: Float[Array, "... m r"]) -> Float[Array, "... l r"]:
    return _einsum("...lm,...mr->...lr", a, b)


# --- indices


def _indices(index: Any, shape: tuple[int, ...]) -> list:
    """An index with an entry for every axis of `shape`; those of the last two, rows and columns, keep their axis."""
    entries = [np.asarray(i) if isinstance(i, list) else i for i in (index if isinstance(index, tuple) else (index,))]
    missing = len(shape) - sum(map(_axes_taken, entries))
    if missing < 0:
        raise IndexError(f"{index!r} has too many indices for a factored matrix of shape {shape}")
    place = next((n for n, i in enumerate(entries) if i is ...), len(entries))
    entries[place : place + 1] = [slice(None)] * missing
    axis = 0
    for i in entries:
        _check_range(i, axis, shape)
        axis += _axes_taken(i)
    for n in (-2, -1):
        if np.ndim(entries[n]) > 1 or entries[n] is None:
            raise IndexError(f"rows and columns are chosen by a number, a slice or a list; got {entries[n]!r}")
        entries[n] = entries[n] if isinstance(entries[n], slice) else jnp.atleast_1d(entries[n])
    return entries


def _axes_taken(i: Any) -> int:
    if i is None or i is ...:
        return 0
    return np.ndim(i) if _is_mask(i) else 1


def _is_mask(i: Any) -> bool:
    return getattr(i, "dtype", None) == np.dtype(bool)


def _check_range(i: Any, axis: int, shape: tuple[int, ...]) -> None:
    if i is None or isinstance(i, slice) or _is_mask(i) or is_traced(i):
        return  # an array of truth values that does not fit is refused by JAX
    odd = [one for one in np.ravel(i) if not -shape[axis] <= one < shape[axis]]
    if odd:
        raise IndexError(f"index {odd[0]} is out of range for axis {axis} of a factored matrix of shape {shape}")


# --- decompositions


def _wide(array: Array) -> Array:
    """In float32 at least: there are no decompositions of half-precision matrices."""
    return array.astype(jnp.promote_types(array.dtype, jnp.float32))


def _each(decompose: Callable, *stacks: Float[Array, "... _ _"]) -> Any:
    """What `decompose` makes of each matrix of a stack (and those beside it in other stacks), stacked again.

    On a CPU, one after the other: batched LAPACK calls that run side by side in one program can wait forever for each
    other's threads (two of jnp.linalg.qr on two cores do, in jaxlib 0.10.2).
    """
    leading = stacks[0].shape[:-2]
    flat = [_wide(stack).reshape(-1, *stack.shape[-2:]) for stack in stacks]
    found = jax.lax.platform_dependent(
        *flat,
        cpu=lambda *flat: jax.lax.map(lambda matrices: decompose(*matrices), flat),
        default=jax.vmap(decompose),
    )
    return jax.tree.map(lambda array: array.reshape(*leading, *array.shape[1:]), found)


@jax.jit
def _svd(A, B):
    return _each(_svd_of_product, A, B)


def _svd_of_product(A: Float[Array, "l m"], B: Float[Array, "m r"]):
    (Q_left, R_left), (Q_right, R_right) = _qr(A), _qr(B.T)
    U, S, Vh = jnp.linalg.svd(_matmul(R_left, R_right.T), full_matrices=False)
    return _matmul(Q_left, U), S, _matmul(Q_right, Vh.T)


def _qr(A: Float[Array, "l m"]):
    """A tall matrix as Q R. A wide one is its own R: there is nothing to save, and JAX cannot differentiate its QR."""
    return jnp.linalg.qr(A) if A.shape[0] > A.shape[1] else (jnp.eye(len(A), dtype=A.dtype), A)


@jax.jit
def _eigenvalues(stack):
    return _each(jnp.linalg.eigvals, stack)


@jax.jit
def _norm(A, B):
    A, B = _wide(A), _wide(B)
    return jnp.sqrt(_trace_of_product(_matmul(A.mT, A), _matmul(B, B.mT)))


def _trace_of_product(left: Float[Array, "... m m"], right: Float[Array, "... m m"]) -> Float[Array, "..."]:
    """The trace of the product of two Gram matrices, which rounding must not make negative."""
    return jnp.maximum(jnp.sum(left * right, axis=(-2, -1)), 0)


# --- composition


def composition_scores(left: FactoredMatrix, right: FactoredMatrix, broadcast_dims: bool = True) -> Float[Array, "..."]:
    """How much of what `left` writes `right` reads: ‖left right‖ / (‖left‖ ‖right‖), in Frobenius norms.

    The measure of Elhage et al. 2021 (transformer-circuits.pub/2021/framework), 0 to 1. With `broadcast_dims` every
    matrix of `left` is composed with every one of `right`, [*i *j]; without, matrix by matrix, and the leading axes
    broadcast. No product is formed: ‖left right‖² is the trace of `leftᵀ left right rightᵀ`, summed up strip by strip.
    In float32 a score is right to a few parts in 10⁷, but one that is exactly 0 can come out as 10⁻⁴.

    Example:
        >>> first_two = FactoredMatrix(jnp.eye(4)[:, :2], jnp.eye(4)[:2])
        >>> last_two = FactoredMatrix(jnp.eye(4)[:, 2:], jnp.eye(4)[2:])
        >>> round(float(composition_scores(first_two, first_two)), 5), float(composition_scores(first_two, last_two))
        (0.70711, 0.0)

    Raises:
        ValueError: `left` has not as many columns as `right` has rows, or the leading axes do not broadcast.
    """
    if left.rdim != right.ldim:
        raise ValueError(f"composition needs left.rdim == right.ldim; the shapes are {left.shape} and {right.shape}")
    if broadcast_dims:
        return _compose_all(left, right)
    _broadcast(left.shape[:-2], right.shape[:-2])
    return _compose_pairs(left, right)


@jax.jit
def _compose_pairs(left: FactoredMatrix, right: FactoredMatrix):
    return (left @ right).norm() / (left.norm() * right.norm())


@jax.jit
def _compose_all(left: FactoredMatrix, right: FactoredMatrix):
    """Scores [*i *j]. Here `left` is A B and `right` C D; d is the axis that they share, s a strip of it."""
    norms = left.norm()[(..., *[None] * (right.ndim - 2))] * right.norm()
    A, B, C, D = (_wide(factor).reshape(-1, *factor.shape[-2:]) for factor in (*left.pair, *right.pair))
    C = C.mT
    width = min(left.rdim, max(1, STRIP // ((len(B) + len(C)) * left.rdim)))
    strips = (
        _strips(_einsum("ilm,iln,ind->idm", A, A, B), width),
        _strips(_einsum("jmd,jmr,jnr->jdn", C, D, D), width),
    )

    def add_strip(squares, strips):
        grams = [_einsum("ism,imd->isd", strip, side) for strip, side in zip(strips, (B, C), strict=True)]
        of_left, of_right = (gram.reshape(len(gram), -1) for gram in grams)
        return squares + _einsum("ix,jx->ij", of_left, of_right), None

    squares, _ = jax.lax.scan(add_strip, jnp.zeros((len(B), len(C)), B.dtype), strips)
    return jnp.sqrt(jnp.maximum(squares, 0)).reshape(norms.shape) / norms


def _strips(side: Float[Array, "i d m"], width: int) -> Float[Array, "strip i s m"]:
    """Cut into strips of `width`, the last filled up with zeros."""
    filled = jnp.pad(side, ((0, 0), (0, -side.shape[1] % width), (0, 0)))
    return jnp.moveaxis(filled.reshape(len(side), -1, width, side.shape[2]), 1, 0)
