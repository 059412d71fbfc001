"""The parts of a parameter that the devices of this process hold, while they are filled from tensors."""

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np
from jax.sharding import NamedSharding

from jaxlens.checkpoints import arrays

Ranges = tuple[tuple[int, int], ...]
"""The first entry along each axis, and that after the last."""


@dataclasses.dataclass(frozen=True)
class Entry:
    """A part of a parameter, or of one layer of it: its ranges, and the memory to fill."""

    ranges: Ranges
    buffer: np.ndarray

    def along(self, axis: int, start: int, stop: int) -> tuple[np.ndarray, tuple[slice, ...]]:
        """What the entries from `start` to `stop` of an axis fill, perhaps nothing, and where it is in them.

        Example:
            >>> entry = Entry(((2, 6),), np.zeros(4))
            >>> buffer, chosen = entry.along(0, 5, 9)
            >>> len(buffer), chosen
            (1, (slice(0, 1, None),))
        """
        first, last = self.ranges[axis]
        low = min(max(first, start), last)
        high = max(low, min(last, stop))
        chosen = list(slices(self.ranges))
        chosen[axis] = slice(max(0, low - start), max(0, high - start))
        return self.buffer[(*[slice(None)] * axis, slice(low - first, high - first))], tuple(chosen)


class Shards:
    """The parts of a parameter that this process holds: all of it without a sharding.

    Example:
        >>> shards = Shards((2, 3), np.dtype("float32"), None)
        >>> (entry,) = shards.entries((1,))
        >>> entry.ranges, entry.buffer.shape
        (((0, 3),), (3,))
    """

    def __init__(self, shape: tuple[int, ...], dtype: np.dtype, sharding: NamedSharding | None):
        self.shape, self.sharding = shape, sharding
        indices = [()] if sharding is None else sharding.addressable_devices_indices_map(shape).values()
        parts = dict.fromkeys(ranges(index, shape) for index in indices)
        self.buffers = {part: arrays.aligned(tuple(stop - start for start, stop in part), dtype) for part in parts}

    def entries(self, index: tuple[int, ...]) -> list[Entry]:
        """What there is at `index` of the leading axes."""
        n = len(index)
        return [
            Entry(part[n:], buffer[(*[i - start for i, (start, _) in zip(index, part, strict=False)], ...)])
            for part, buffer in self.buffers.items()
            if all(start <= i < stop for i, (start, stop) in zip(index, part, strict=False))
        ]

    def is_finite(self) -> bool:
        """Whether no value is NaN or infinite."""
        return all(map(arrays.is_finite, self.buffers.values()))

    def array(self) -> jax.Array:
        """The parameter, when its parts are filled."""
        if self.sharding is None:
            (buffer,) = self.buffers.values()
            return jax.device_put(buffer)
        return jax.make_array_from_callback(
            self.shape, self.sharding, lambda index: self.buffers[ranges(index, self.shape)]
        )


def ranges(index: Sequence[slice], shape: tuple[int, ...]) -> Ranges:
    """The ranges of slices, of which there may be fewer than axes.

    Example:
        >>> ranges((slice(None), slice(2, 4)), (3, 4, 5))
        ((0, 3), (2, 4), (0, 5))
    """
    index = (*index, *[slice(None)] * (len(shape) - len(index)))
    return tuple(chosen.indices(length)[:2] for chosen, length in zip(index, shape, strict=True))


def slices(ranges: Ranges) -> tuple[slice, ...]:
    return tuple(slice(start, stop) for start, stop in ranges)


def hull(entries: Sequence[Entry]) -> Ranges:
    """The smallest ranges that contain those of all entries.

    Example:
        >>> hull([Entry(((0, 2), (0, 9)), np.zeros(0)), Entry(((4, 6), (0, 9)), np.zeros(0))])
        ((0, 6), (0, 9))
    """
    axes = zip(*(entry.ranges for entry in entries), strict=True)
    return tuple((min(start for start, _ in axis), max(stop for _, stop in axis)) for axis in axes)


def within(entries: Sequence[Entry], outer: Ranges) -> list[Entry]:
    """The entries, with ranges that count from the beginning of `outer`."""

    def moved(ranges: Ranges) -> Ranges:
        return tuple((start - first, stop - first) for (start, stop), (first, _) in zip(ranges, outer, strict=True))

    return [Entry(moved(entry.ranges), entry.buffer) for entry in entries]
