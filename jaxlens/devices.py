"""Devices by the names that people write."""

from typing import Any

import jax


def as_device(device: Any) -> jax.Device | jax.sharding.Sharding:
    """A device from "cpu", "cuda", "gpu:1" or the like (or anything that prints so); devices and shardings as they are.

    Raises:
        ValueError: there is no such device.
    """
    if isinstance(device, jax.Device | jax.sharding.Sharding):
        return device
    kind, _, number = str(device).partition(":")
    try:
        return jax.devices(kind)[int(number or 0)]
    except (RuntimeError, ValueError, IndexError) as error:
        raise ValueError(f"there is no device {str(device)!r}; there are {jax.devices()}") from error
