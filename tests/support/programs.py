"""Programs that JAX compiles."""

import contextlib
from collections.abc import Callable, Iterator

import jax

COMPILED = "/jax/core/compile/backend_compile_duration"


@contextlib.contextmanager
def compilations() -> Iterator[list[str]]:
    """Collects the name of every program that is compiled meanwhile."""
    names: list[str] = []

    def listen(event: str, seconds: float, **about):
        if event == COMPILED:
            names.append(about.get("fun_name", "?"))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield names
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def most_compiled(run: Callable[[int], object], *lengths: int) -> int:
    """The most programs that one of these lengths compiles, after a run of length 9."""
    run(9)
    counts = []
    for length in lengths:
        with compilations() as compiled:
            run(length)
        counts.append(len(compiled))
    return max(counts)
