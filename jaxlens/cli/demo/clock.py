"""Measures the time of a step and the number of programs that it compiles."""

import contextlib
import dataclasses
import time
from collections.abc import Iterator

import jax


@dataclasses.dataclass
class Measured:
    """The duration of a block of code, and the number of programs that were compiled during it."""

    seconds: float = 0.0
    compilations: int = 0


@contextlib.contextmanager
def measured() -> Iterator[Measured]:
    """Measures a `with` block."""
    result = Measured()

    def count(event: str, seconds: float, **details) -> None:
        result.compilations += event.endswith("/backend_compile_duration")

    jax.monitoring.register_event_duration_secs_listener(count)
    start = time.perf_counter()
    try:
        yield result
    finally:
        result.seconds = time.perf_counter() - start
        jax.monitoring.unregister_event_duration_listener(count)


@contextlib.contextmanager
def step(title: str) -> Iterator[None]:
    """Prints the title of a step, and its duration once it is done."""
    print(f"{title} … ", end="", flush=True)
    outcome = "failed"
    try:
        with measured() as result:
            yield
        outcome = f"{result.seconds:.1f} s"
    finally:
        print(outcome, flush=True)
