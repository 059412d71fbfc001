"""The metadata of a GGUF file: records which keys were read, so that none is ignored by accident."""

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

from jaxlens.errors import CheckpointError

IGNORED_PREFIXES = ("general.", "tokenizer.", "quantize.", "GGUF.", "split.", "imatrix.", "mradermacher.")
"""Metadata about the file, its vocabulary and its creation, without effect on a forward pass."""


class Metadata:
    """The metadata of a file. Methods take keys without their first part, which is the `name` of the architecture.

    `unread` are the keys that were not read yet. `shapes` are the shapes of the file's tensors, and `read` reads one.
    `used` are the tensors that were read as metadata: factors of rotary frequencies. `made` are tensors of the
    checkpoint that the file stores as metadata.
    """

    def __init__(
        self, name: str, values: Mapping[str, Any], shapes: Mapping[str, tuple[int, ...]],
        read: Callable[[str], np.ndarray],
    ):  # fmt: skip
        self.name, self.values, self.shapes, self._read = name, values, shapes, read
        self.unread = {key for key in values if not key.startswith(IGNORED_PREFIXES)}
        self.used: set[str] = set()
        self.made: dict[str, np.ndarray] = {}

    def raw(self, key: str, default: Any = None) -> Any:
        """The value of a complete key."""
        self.unread.discard(key)
        return self.values.get(key, default)

    def get(self, *keys: str, default: Any = None) -> Any:
        """The value of the first of `keys` in the file. The entries of a list, one per layer, must be equal."""
        for key in (f"{self.name}.{key}" for key in keys):
            if key in self.values:
                value = self.raw(key)
                if isinstance(value, list) and (not value or any(item != value[0] for item in value)):
                    raise CheckpointError(f"{key} is {value}; expected the same value for all layers")
                return value[0] if isinstance(value, list) else value
        return default

    def positive(self, *keys: str, default: Any = None) -> Any:
        """Like `get`, for a positive number."""
        value = self.get(*keys, default=default)
        if isinstance(value, bool) or not isinstance(value, int | float) or value <= 0:
            raise CheckpointError(f"{self.name}.{keys[0]} is {value!r}; expected a positive number")
        return value

    def expect(self, key: str, *supported: Any) -> None:
        """Raises a CheckpointError unless the key is absent or has a supported value."""
        if (value := self.get(key, default=supported[0])) not in supported:
            raise CheckpointError(f"{self.name}.{key} is {value!r}; expected {' or '.join(map(repr, supported))}")

    def skip(self, *keys: str) -> None:
        """Marks keys as read that have no effect in this architecture."""
        for key in keys:
            self.raw(f"{self.name}.{key}")

    def has(self, tensor: str) -> bool:
        return tensor in self.shapes

    def rows(self, tensor: str, axis: int = 0) -> int | None:
        """The length of an axis of a tensor in the first layer that has it. None if no layer has it."""
        shapes = (self.shapes.get(f"blk.{layer}.{tensor}") for layer in range(self.layers))
        return next((shape[axis] for shape in shapes if shape and axis < len(shape)), None)

    @property
    def layers(self) -> int:
        if not isinstance(layers := self.positive("block_count"), int):
            raise CheckpointError(f"{self.name}.block_count is {layers!r}; expected an integer")
        if layers > len(self.shapes):
            raise CheckpointError(
                f"{self.name}.block_count is {layers}, but the file has only {len(self.shapes)} tensors"
            )
        return layers

    @property
    def heads(self) -> int:
        return self.positive("attention.head_count")

    @property
    def kv_heads(self) -> int:
        return self.positive("attention.head_count_kv", default=self.heads)

    @property
    def head_dim(self) -> int:
        """The size of a head: from the metadata, or else from the tensor of queries."""
        rows, fused = self.rows("attn_q.weight"), self.rows("attn_qkv.weight")
        parts = self.heads + 2 * self.kv_heads if fused and not rows else self.heads
        size = self.get("attention.key_length", default=(rows or fused or self.positive("embedding_length")) // parts)
        self.expect("attention.value_length", size)
        return size

    def sliding_layers(self, period: int) -> list[bool]:
        """Which layers have a window. By default, every layer except each `period`-th."""
        pattern = self.raw(f"{self.name}.attention.sliding_window_pattern", period)
        if isinstance(pattern, list):
            if len(pattern) != self.layers or not all(isinstance(item, bool) for item in pattern):
                key = f"{self.name}.attention.sliding_window_pattern"
                raise CheckpointError(f"{key} is {pattern}; expected one boolean for each of {self.layers} layers")
            return pattern
        return [pattern > 0 and (layer + 1) % pattern != 0 for layer in range(self.layers)]

    def frequency_factors(self, tensor: str, count: int) -> list[float] | None:
        """The divisors of `count` rotary frequencies, from a tensor. None if the file does not contain it."""
        if not self.has(tensor):
            return None
        self.used.add(tensor)
        values = self._read(tensor)
        if values.shape != (count,):
            raise CheckpointError(f"{tensor} has shape {values.shape}; expected {(count,)}, one factor per frequency")
        return [float(str(value)) for value in values]
