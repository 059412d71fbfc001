"""The order in which the rows of a harvest are read: as stored, or shuffled with bounded memory."""

from collections.abc import Iterator

import numpy as np
from jaxtyping import Int

CHUNK = 256
"""Consecutive rows that are read together when rows are shuffled."""

POOL = 256
"""The number of chunks, from anywhere in the data, whose rows are mixed in memory."""


class Order:
    """The rows 0 to `n` - 1 in an order that depends on `seed` and the epoch, or (None) as they are stored.

    Chunks of consecutive rows are shuffled, and the rows of every `POOL` of them are mixed. So only a pool must be in
    memory, and a pool can be found without those before it.
    """

    def __init__(self, n: int, seed: int | None, epoch: int):
        self._n, self._seed, self._epoch = n, seed, epoch
        n_chunks = -(-n // CHUNK)
        chunks = np.arange(n_chunks) if seed is None else np.random.default_rng((seed, epoch)).permutation(n_chunks)
        sizes = np.minimum(CHUNK, n - chunks * CHUNK)
        self._pools = [chunks[first : first + POOL] for first in range(0, n_chunks, POOL)]
        self._starts = np.concatenate([[0], np.cumsum([sizes[i : i + POOL].sum() for i in range(0, n_chunks, POOL)])])

    def pools(self, start: int = 0) -> Iterator[tuple[list[slice], Int[np.ndarray, "r"]]]:
        """From place `start` of the order on: the chunks of each pool, and the order of their rows, joined."""
        first = int(np.searchsorted(self._starts, start, side="right")) - 1
        for number in range(first, len(self._pools)):
            chunks = self._pools[number]
            rows = [slice(i * CHUNK, min(self._n, (i + 1) * CHUNK)) for i in chunks.tolist()]
            order = np.arange(int(self._starts[number + 1] - self._starts[number]))
            if self._seed is not None:
                order = np.random.default_rng((self._seed, self._epoch, number)).permutation(order)
            yield rows, order[max(0, start - int(self._starts[number])) :]
