"""Work on large arrays in parts that fit the caches, and in threads: NumPy computes outside of Python's lock."""

import concurrent.futures
import dataclasses
import math
import os
from collections.abc import Callable

import numpy as np

SUMMED = 2**13
"""The length up to which BLAS computes a dot product in the thread that calls it."""

LINE = 16
"""The entries of a cache line of float32."""

SAME_SETS = 2048
"""If the distance of rows is a multiple of this many bytes, neighbouring rows are in one or two sets of the cache."""

AT_ONCE = 2**17
"""The number of values that are computed at a time."""

IN_THREAD = 2**18
"""The number of multiplications up to which BLAS computes a matrix product in the thread that calls it."""


def in_parts(work: Callable[[slice], None], length: int, step: int) -> None:
    """Calls `work` for the parts of `range(length)`, which have `step` entries. Values may become infinite.

    Example:
        >>> values = np.arange(5)
        >>> def negate(part):
        ...     values[part] *= -1
        >>> in_parts(negate, 5, 2)
        >>> values.tolist()
        [0, -1, -2, -3, -4]
    """
    starts = iter(range(0, length, step))

    def take_parts(_: int) -> None:
        with np.errstate(over="ignore", invalid="ignore"):  # a setting of the thread
            for start in starts:
                work(slice(start, min(start + step, length)))

    count = min(os.cpu_count() or 1, -(-length // step))
    if count < 2:
        take_parts(0)
        return
    with concurrent.futures.ThreadPoolExecutor(count) as threads:
        for _ in threads.map(take_parts, range(count)):
            pass  # raises the error of a thread


def copy(to: np.ndarray, values: np.ndarray, step: int = 2**18) -> None:
    """Copies `values` to an array of the same shape, about `step` values at a time.

    Example:
        >>> to = np.empty((2, 3), np.float32)
        >>> copy(to, np.arange(6).reshape(3, 2).T)
        >>> to.tolist()
        [[0.0, 2.0, 4.0], [1.0, 3.0, 5.0]]
    """
    if to.size == 0 or to.ndim == 0:
        to[...] = values
        return
    axis = to.ndim - 1 if _is_transposed(values) else int(np.argmax(to.shape))
    count = max(LINE, step * to.shape[axis] // to.size // LINE * LINE)

    def part(chosen: slice) -> None:
        few = (*[slice(None)] * axis, chosen)
        copy_part(to[few], values[few])

    in_parts(part, to.shape[axis], count)


def copy_part(to: np.ndarray, values: np.ndarray) -> None:
    """Copies `values` to an array of the same shape, in this thread.

    If `values` has its axes in another order, such as a transposed matrix, a few entries of each row of `to` are
    copied at a time: neighbouring rows of them are in the same cache lines. Fewer of these lines fit into the cache if
    they are in the same sets of it.
    """
    if not _is_transposed(values):
        to[...] = values
        return
    step = LINE if values.strides[-1] % SAME_SETS == 0 else 4 * LINE
    for start in range(0, to.shape[-1], step):
        few = (..., slice(start, start + step))
        to[few] = values[few].astype(to.dtype, copy=False)


def _is_transposed(values: np.ndarray) -> bool:
    """Whether neighbours along the last axis are not the closest in memory."""
    strides = [abs(stride) for stride, length in zip(values.strides, values.shape, strict=True) if length > 1]
    return bool(strides) and abs(values.strides[-1]) > min(strides)


@dataclasses.dataclass(frozen=True)
class Rows:
    """A float32 array that is computed a few rows at a time, or the transpose of one if `transposed`.

    `fill(rows, out)` writes a slice of the rows, which begins at a multiple of `multiple`.

    Example:
        >>> rows = Rows((2, 3), lambda rows, out: np.copyto(out, np.arange(6).reshape(2, 3)[rows]), transposed=True)
        >>> rows.array().tolist(), rows.part(slice(1, 2)).tolist()
        ([[0.0, 3.0], [1.0, 4.0], [2.0, 5.0]], [[3.0], [4.0], [5.0]])
    """

    shape: tuple[int, ...]
    fill: Callable[[slice, np.ndarray], None]
    multiple: int = 1
    transposed: bool = False

    def step(self, multiple: int = 1) -> int:
        """How many rows to compute at a time: a multiple of `multiple`."""
        multiple = math.lcm(multiple, self.multiple)
        return max(1, AT_ONCE // max(1, math.prod(self.shape[1:])) // multiple) * multiple

    def part(self, rows: slice) -> np.ndarray:
        """Some of the rows: columns if the array is transposed.

        Most parameters are transposed weights. So rows have a distance with which `copy_part` transposes them fast.
        """
        out = np.empty((rows.stop - rows.start, *self.shape[1:]), np.float32)
        self.fill(rows, out)
        if self.transposed or out.strides[0] % SAME_SETS:
            return out.T if self.transposed else out
        spaced = np.empty((*out.shape[:-1], out.shape[-1] + LINE), np.float32)[..., :-LINE]
        spaced[...] = out
        return spaced

    def array(self) -> np.ndarray:
        """The whole array."""
        result = np.empty(self.shape, np.float32)
        in_parts(lambda rows: self.fill(rows, result[rows]), self.shape[0], self.step())
        return result.T if self.transposed else result


def product(left: np.ndarray, right: np.ndarray) -> np.ndarray:
    """The product of two matrices, computed in this thread: in blocks of columns that BLAS does not divide.

    If several threads multiply larger matrices, each starts threads of BLAS, which wait for each other.

    Example:
        >>> product(np.array([[1.0, 2.0]]), np.array([[3.0, 4.0, 5.0], [6.0, 7.0, 8.0]])).tolist()
        [[15.0, 18.0, 21.0]]
    """
    (n_rows, inner), n_columns = left.shape, right.shape[1]
    width = min(n_columns, max(1, IN_THREAD // (n_rows * inner)))
    count = -(-n_columns // width)
    right = np.pad(right, [(0, 0), (0, count * width - n_columns)]) if n_columns % width else right
    result = np.empty((n_rows, count * width), np.result_type(left, right))
    blocks, of_result = (array.reshape(len(array), count, width).swapaxes(0, 1) for array in (right, result))
    np.matmul(left, blocks, out=of_result)
    return result[:, :n_columns]


def norms(matrix: np.ndarray) -> np.ndarray:
    """The Euclidean norm of each row, computed in this thread: BLAS divides longer dot products.

    Example:
        >>> norms(np.array([[3.0, 4.0], [0.0, 2.0]])).tolist()
        [5.0, 2.0]
    """
    starts = range(0, matrix.shape[1], SUMMED)
    blocks = (matrix[:, start : start + SUMMED] for start in starts)
    return np.sqrt(sum(np.matmul(block[:, None], block[:, :, None])[:, 0, 0] for block in blocks))


def whole(values: np.ndarray | Rows) -> np.ndarray:
    """An array that may be computed in parts."""
    return values.array() if isinstance(values, Rows) else values


def is_finite(array: np.ndarray, step: int = 2**18) -> bool:
    """Whether no value is NaN or infinite."""
    flat, parts = array.reshape(-1), []
    in_parts(lambda part: parts.append(bool(np.isfinite(flat[part]).all())), flat.size, step)
    return all(parts)


def aligned(shape: tuple[int, ...], dtype: np.dtype) -> np.ndarray:
    """An empty array that JAX's CPU backend uses without a copy, because its address is a multiple of 64 bytes."""
    size = math.prod(shape) * dtype.itemsize
    memory = np.empty(size + 64, np.uint8)
    start = -memory.ctypes.data % 64
    return memory[start : start + size].view(dtype).reshape(shape)
