"""Low-rank matrices stored as two factors, and composition scores of such matrices.

Axes: l row (ldim), m inner dimension (mdim), r column (rdim), k singular value, i leading axes of a left matrix, j
leading axes of a right matrix.
"""

import warnings
from collections.abc import Callable
from numbers import Number
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, ArrayLike, Complex, Float

from jaxlens._jax import each_public_method, full_precision, in_full_precision, is_traced, wide
from jaxlens._jax.explicit_axes import on_any_mesh

STRIP = 2**24
"""The number of Gram matrix entries that `composition_scores` holds at a time: 64 MiB of float32."""


TensorLike = ArrayLike
"""What a factor may be: anything that `jnp.asarray` accepts, such as a numpy array or a torch tensor."""


@jax.tree_util.register_pytree_node_class
@each_public_method(on_any_mesh)
@in_full_precision
class FactoredMatrix:
    """The matrix `A @ B` [... l r] of rank at most m, stored as its factors. Only `AB` forms the product.

    The circuits of attention heads are such matrices: the OV circuit `W_V @ W_O` is d_model × d_model and has rank
    d_head (Elhage et al. 2021, transformer-circuits.pub/2021/framework). `@` multiplies it from both sides with
    matrices, vectors and other factored matrices, keeping the smallest inner dimension. Leading axes broadcast. The
    class is a pytree of its two factors, so jit, vmap and grad accept it.

    Example:
        >>> circuit = FactoredMatrix(jnp.ones((5, 100, 2)), jnp.ones((5, 2, 100)))
        >>> circuit
        FactoredMatrix: Shape((5, 100, 100)), Hidden Dim(2)
        >>> (jnp.ones((7, 100)) @ circuit)[2].AB.shape, circuit.norm().shape, circuit.eigenvalues.shape
        ((7, 100), (5,), (5, 2))

    Raises:
        ValueError: The factors are not matrices, or their shapes do not match.
    """

    __array_ufunc__ = None  # makes numpy arrays call this class in `array @ factored` and `scalar * factored`

    def __init__(self, A: Float[Array, "... l m"], B: Float[Array, "... m r"]):
        A, B = jnp.asarray(A), jnp.asarray(B)
        if A.ndim < 2 or B.ndim < 2 or A.shape[-1] != B.shape[-2]:
            raise ValueError(f"the factors have shapes {A.shape} and {B.shape}; expected [... l m] and [... m r]")
        leading = _broadcast(A.shape[:-2], B.shape[:-2])
        self.A = jnp.broadcast_to(A, leading + A.shape[-2:])
        self.B = jnp.broadcast_to(B, leading + B.shape[-2:])
        self._svd = None

    def tree_flatten(self):
        return (self.A, self.B), None

    @classmethod
    def tree_unflatten(cls, _, children):
        matrix = object.__new__(cls)  # without checks, because the children can be tracers or other objects
        (matrix.A, matrix.B), matrix._svd = children, None
        return matrix

    # --- shape

    ldim = property(lambda self: self.A.shape[-2], doc="The number of rows.")
    mdim = property(lambda self: self.A.shape[-1], doc="The inner dimension, an upper bound of the rank.")
    rdim = property(lambda self: self.B.shape[-1], doc="The number of columns.")
    shape = property(lambda self: (*self.A.shape[:-1], self.rdim), doc="The shape of the product.")
    ndim = property(lambda self: self.A.ndim, doc="The number of axes.")
    has_leading_dims = property(lambda self: self.ndim > 2, doc="Whether it is a stack of matrices.")
    pair = property(lambda self: (self.A, self.B), doc="The two factors.")

    def __repr__(self) -> str:
        return f"FactoredMatrix: Shape({self.shape}), Hidden Dim({self.mdim})"

    # --- products

    @property
    def AB(self) -> Float[Array, "... l r"]:
        """The full product."""
        return _matmul(self.A, self.B)

    @property
    def BA(self) -> Float[Array, "... m m"]:
        """`B @ A`, for a square matrix. It has the same nonzero eigenvalues as `A @ B`."""
        if self.ldim != self.rdim:
            raise ValueError(f"BA needs a square matrix; got shape {self.shape}")
        return _matmul(self.B, self.A)

    @property
    def T(self) -> "FactoredMatrix":
        """The transpose of every matrix. Leading axes stay in place."""
        return FactoredMatrix(self.B.mT, self.A.mT)

    def __matmul__(self, other: Any) -> "FactoredMatrix | Array":
        """Times a matrix or factored matrix gives a FactoredMatrix. Times a vector [r] gives an array [... l]."""
        if isinstance(other, FactoredMatrix):
            return (self @ other.A) @ other.B
        other = self._operand(other, -1 if np.ndim(other) < 2 else -2, self.rdim, "right")
        if other.ndim == 1:
            return jnp.einsum("...lm,...mr,r->...l", self.A, self.B, other)
        if self.rdim > self.mdim:
            return FactoredMatrix(self.A, _matmul(self.B, other))
        return FactoredMatrix(self.AB, other)

    def __rmatmul__(self, other: Any) -> "FactoredMatrix | Array":
        """A matrix times this gives a FactoredMatrix. A vector [l] times this gives an array [... r]."""
        other = self._operand(other, -1, self.ldim, "left")
        if other.ndim == 1:
            return jnp.einsum("l,...lm,...mr->...r", other, self.A, self.B)
        if self.ldim > self.mdim:
            return FactoredMatrix(_matmul(other, self.A), self.B)
        return FactoredMatrix(other, self.AB)

    def _operand(self, other: Any, axis: int, length: int, side: str) -> Array:
        other = jnp.asarray(other)
        if other.ndim == 0 or other.shape[axis] != length:
            expected = f"length {length} along axis {axis}, to match the factored matrix of shape {self.shape}"
            raise ValueError(f"the {side} operand of @ has shape {other.shape}; expected {expected}")
        return other

    def __mul__(self, scalar: Number | Array) -> "FactoredMatrix":
        """Times a scalar."""
        scalar = jnp.asarray(scalar)
        if scalar.size != 1:
            raise ValueError(f"* expects a scalar; got shape {scalar.shape}; write @ for a matrix product")
        return FactoredMatrix(self.A * scalar.reshape(()), self.B)

    __rmul__ = __mul__

    # --- indexing

    @on_any_mesh
    def __getitem__(self, index: Any) -> "FactoredMatrix":
        """A FactoredMatrix of the selected matrices, rows and columns, as for an array of this shape.

        But a single row or column keeps its axis, and lists of rows and columns are not paired with each other.

        Raises:
            IndexError: There are more indices than axes, or an index is out of range (JAX arrays would clamp it).
        """
        *leading, rows, columns = _indices(index, self.shape)
        A, B = self.A[tuple(leading)], self.B[tuple(leading)]
        return FactoredMatrix(A[..., rows, :], B[..., columns])

    def get_corner(self, k: int = 3) -> Array:
        """The first k entries along every axis, as an array."""
        return self[(slice(k),) * self.ndim].AB

    def unsqueeze(self, k: int) -> "FactoredMatrix":
        """A new leading axis of length one at position `k`."""
        if not (0 <= k <= self.ndim - 2 or -self.ndim - 1 <= k <= -3):
            raise ValueError(f"k is {k}; expected 0 to {self.ndim - 2}, before the axes of rows and columns")
        return FactoredMatrix(jnp.expand_dims(self.A, k), jnp.expand_dims(self.B, k))

    # --- decompositions and norms

    def svd(self) -> tuple[Float[Array, "... l k"], Float[Array, "... k"], Float[Array, "... r k"]]:
        """U, S and V such that the matrix is `U @ diag(S) @ V.T`, in float32 or wider; k is the smallest of l, m and r.

        The cost is two QR decompositions and the SVD of an m × m matrix. The result is cached.
        """
        if self._svd is not None:
            return self._svd
        result = _svd(self.A, self.B)
        if not is_traced(result):
            self._svd = result
        return result

    U = property(lambda self: self.svd()[0], doc="Left singular vectors [... l k], one per column.")
    S = property(lambda self: self.svd()[1], doc="Singular values [... k] in descending order.")
    V = property(lambda self: self.svd()[2], doc="Right singular vectors [... r k], one per column.")

    @property
    def Vh(self) -> Float[Array, "... r k"]:
        """TransformerLens's former name of `V`. Despite the name it is V, not its transpose."""
        warnings.warn("FactoredMatrix.Vh is V and not its transpose; write .V", DeprecationWarning, stacklevel=3)
        return self.V

    def norm(self) -> Float[Array, "..."]:
        """The Frobenius norm of every matrix."""
        return _norm(self.A, self.B)

    @property
    def eigenvalues(self) -> Complex[Array, "... m"]:
        """The eigenvalues of the m × m matrix `BA`, unordered. The other eigenvalues of the matrix are zero."""
        return _eigenvalues(self.BA)

    def make_even(self) -> "FactoredMatrix":
        """The same matrix with the factors `U √S` and `√S Vᵀ`, so that both have the same singular values."""
        U, S, V = self.svd()
        return FactoredMatrix(U * jnp.sqrt(S)[..., None, :], jnp.sqrt(S)[..., :, None] * V.mT)

    def collapse_l(self) -> Float[Array, "... k r"]:
        """`S Vᵀ`: the matrix without its orthogonal left factor."""
        return self.S[..., :, None] * self.V.mT

    def collapse_r(self) -> Float[Array, "... l k"]:
        """`U S`: the matrix without its orthogonal right factor."""
        return self.U * self.S[..., None, :]


def _broadcast(*shapes: tuple[int, ...]) -> tuple[int, ...]:
    try:
        return np.broadcast_shapes(*shapes)
    except ValueError as error:
        raise ValueError(f"the leading axes {' and '.join(map(str, shapes))} do not broadcast together") from error


def _matmul(a: Float[Array, "... l m"], b: Float[Array, "... m r"]) -> Float[Array, "... l r"]:
    return jnp.einsum("...lm,...mr->...lr", a, b)


# --- indices


def _indices(index: Any, shape: tuple[int, ...]) -> list:
    """An index with an entry for each axis of `shape`. The last two entries, rows and columns, keep their axis."""
    entries = [np.asarray(i) if isinstance(i, list) else i for i in (index if isinstance(index, tuple) else (index,))]
    missing = len(shape) - sum(map(_axes_taken, entries))
    if missing < 0:
        raise IndexError(f"index {index!r} has too many entries for a factored matrix of shape {shape}")
    ellipsis = next((n for n, i in enumerate(entries) if i is ...), len(entries))
    entries[ellipsis : ellipsis + 1] = [slice(None)] * missing
    axis = 0
    for i in entries:
        _check_range(i, axis, shape)
        axis += _axes_taken(i)
    for n in (-2, -1):
        if np.ndim(entries[n]) > 1 or entries[n] is None:
            raise IndexError(f"the index of rows or columns is {entries[n]!r}; expected an integer, a slice or a list")
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
        return  # JAX rejects a boolean mask of the wrong shape
    outside = [entry for entry in np.ravel(i) if not -shape[axis] <= entry < shape[axis]]
    if outside:
        raise IndexError(f"index {outside[0]} is out of range for axis {axis} of a factored matrix of shape {shape}")


# --- decompositions


def _map_matrices(decompose: Callable, *stacks: Float[Array, "... _ _"]) -> Any:
    """Applies `decompose` to every matrix of the stacks, in float32 or wider, and stacks the results.

    On a CPU, matrices are processed one at a time. Concurrent batched LAPACK calls in a single program can deadlock on
    each other's threads (in jaxlib 0.10.2, two calls of jnp.linalg.qr on two cores do).
    """
    leading = stacks[0].shape[:-2]
    flat = [wide(stack).reshape(-1, *stack.shape[-2:]) for stack in stacks]
    result = jax.lax.platform_dependent(
        *flat, cpu=lambda *flat: jax.lax.map(lambda matrices: decompose(*matrices), flat), default=jax.vmap(decompose),
    )  # fmt: skip
    return jax.tree.map(lambda array: array.reshape(*leading, *array.shape[1:]), result)


@jax.jit
def _svd(A, B):
    return _map_matrices(_svd_of_product, A, B)


def _svd_of_product(A: Float[Array, "l m"], B: Float[Array, "m r"]):
    (Q_left, R_left), (Q_right, R_right) = _qr(A), _qr(B.T)
    U, S, Vh = jnp.linalg.svd(_matmul(R_left, R_right.T), full_matrices=False)
    return _matmul(Q_left, U), S, _matmul(Q_right, Vh.T)


def _qr(A: Float[Array, "l m"]):
    """Q and R of a tall matrix. For a wide matrix, Q is the identity, because JAX cannot differentiate its QR."""
    return jnp.linalg.qr(A) if A.shape[0] > A.shape[1] else (jnp.eye(len(A), dtype=A.dtype), A)


@jax.jit
def _eigenvalues(stack):
    return _map_matrices(jnp.linalg.eigvals, stack)


@jax.jit
def _norm(A, B):
    A, B = wide(A), wide(B)
    squares = jnp.sum(_matmul(A.mT, A) * _matmul(B, B.mT), axis=(-2, -1))
    return jnp.sqrt(jnp.maximum(squares, 0))  # rounding could make a square negative


# --- composition


@on_any_mesh
@full_precision()
def composition_scores(left: FactoredMatrix, right: FactoredMatrix, broadcast_dims: bool = True) -> Float[Array, "..."]:
    """How strongly two matrices compose: ‖left right‖ / (‖left‖ ‖right‖) in Frobenius norms, from 0 to 1.

    The score is that of Elhage et al. 2021 (transformer-circuits.pub/2021/framework). With `broadcast_dims` the result
    is [*i *j]: every matrix of `left` with every matrix of `right`. Without it, the leading axes broadcast.

    No product is formed: ‖left right‖² is the trace of `leftᵀ left right rightᵀ`, accumulated over strips of the shared
    axis. In float32, the relative error is a few parts in 10⁷, but a score of exactly 0 can become 10⁻⁴.

    Example:
        >>> first_two = FactoredMatrix(jnp.eye(4)[:, :2], jnp.eye(4)[:2])
        >>> last_two = FactoredMatrix(jnp.eye(4)[:, 2:], jnp.eye(4)[2:])
        >>> round(float(composition_scores(first_two, first_two)), 5), float(composition_scores(first_two, last_two))
        (0.70711, 0.0)

    Raises:
        ValueError: `left.rdim` is not `right.ldim`, or the leading axes do not broadcast.
    """
    if left.rdim != right.ldim:
        raise ValueError(f"composition needs left.rdim == right.ldim; got shapes {left.shape} and {right.shape}")
    if broadcast_dims:
        return _compose_all(left, right)
    _broadcast(left.shape[:-2], right.shape[:-2])
    return _compose_pairs(left, right)


@jax.jit
def _compose_pairs(left: FactoredMatrix, right: FactoredMatrix):
    return (left @ right).norm() / (left.norm() * right.norm())


@jax.jit
def _compose_all(left: FactoredMatrix, right: FactoredMatrix):
    """Scores [*i *j] of left = A B and right = C D. Axes: d the shared axis, s an index in a strip of d."""
    norms = left.norm()[(..., *[None] * (right.ndim - 2))] * right.norm()
    A, B, C, D = (wide(factor).reshape(-1, *factor.shape[-2:]) for factor in (*left.pair, *right.pair))
    C = C.mT
    width = min(left.rdim, max(1, STRIP // ((len(B) + len(C)) * left.rdim)))
    sides = jnp.einsum("ilm,iln,ind->idm", A, A, B), jnp.einsum("jmd,jmr,jnr->jdn", C, D, D)
    strips = tuple(_strips(side, width) for side in sides)

    def add_strip(squares, strips):
        grams = [jnp.einsum("ism,imd->isd", strip, side) for strip, side in zip(strips, (B, C), strict=True)]
        of_left, of_right = (gram.reshape(len(gram), -1) for gram in grams)
        return squares + jnp.einsum("ix,jx->ij", of_left, of_right), None

    squares, _ = jax.lax.scan(add_strip, jnp.zeros((len(B), len(C)), B.dtype), strips)
    return jnp.sqrt(jnp.maximum(squares, 0)).reshape(norms.shape) / norms


def _strips(side: Float[Array, "i d m"], width: int) -> Float[Array, "strip i s m"]:
    """Cuts the axis d into strips of `width`. The last strip is padded with zeros."""
    filled = jnp.pad(side, ((0, 0), (0, -side.shape[1] % width), (0, 0)))
    return jnp.moveaxis(filled.reshape(len(side), -1, width, side.shape[2]), 1, 0)
