"""Times that are comparable on a busy machine, and the programs that are compiled meanwhile."""

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

_TRACE, _LOWER, _COMPILE = (
    f"/jax/core/compile/{name}_duration" for name in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
)


@dataclasses.dataclass
class Compilations:
    """The names of compiled programs, and the total time of tracing, lowering and compiling them."""

    programs: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.programs)


@contextlib.contextmanager
def compilations() -> Iterator[Compilations]:
    """A context manager that records every program that JAX compiles."""
    record = Compilations()

    def on_event(event: str, seconds: float, **details: Any) -> None:
        if event in (_TRACE, _LOWER, _COMPILE):
            record.seconds += seconds
        if event == _COMPILE:
            record.programs.append(str(details.get("fun_name", "?")))

    jax.monitoring.register_event_duration_secs_listener(on_event)
    try:
        yield record
    finally:
        jax.monitoring.unregister_event_duration_listener(on_event)


class Clocks(NamedTuple):
    """Wall time and the processor time of this process in seconds. Other load hardly affects processor time."""

    wall: float
    processor: float

    def __sub__(self, other: "Clocks") -> "Clocks":
        return Clocks(self.wall - other.wall, self.processor - other.processor)


def clocks(run: Callable[[], Any]) -> Clocks:
    """The time of `run` until all arrays that it returns are ready."""
    wall, processor = time.perf_counter(), time.process_time()
    jax.block_until_ready(run())
    return Clocks(time.perf_counter() - wall, time.process_time() - processor)


def median(times: Sequence[Clocks]) -> Clocks:
    """The median wall time and the median processor time."""
    return Clocks(*map(statistics.median, zip(*times, strict=True)))


def seconds(run: Callable[[], Any]) -> float:
    """The wall time of `run`."""
    return clocks(run).wall


def peak_flops() -> float:
    """The float32 operations per second of the fastest matrix product."""
    best = 0.0
    for size in (512, 1024, 2048):
        a = jnp.ones((size, size))
        product = jax.jit(lambda a: jnp.matmul(a, a, precision="highest"))
        jax.block_until_ready(product(a))
        best = max(best, *(2 * size**3 / seconds(lambda product=product, a=a: product(a)) for _ in range(5)))
    return best


@jax.jit
def read_weights(weights: list[jax.Array]) -> list[jax.Array]:
    """The product of every weight with a vector: each number is read once."""
    return [w.reshape(-1, w.shape[-1]) @ jnp.ones(w.shape[-1], w.dtype) for w in weights]


@dataclasses.dataclass
class Timing:
    """The times and compilations of a case: its first call, and its warm calls, each next to a call of the baseline."""

    first: float
    compiled_first: Compilations
    warm: float = 0.0
    ratio: float = 1.0
    processor_ratio: float = 1.0
    compiled_warm: Compilations = dataclasses.field(default_factory=Compilations)


def interleaved(cases: Mapping[str, Callable[[int], Any]], rounds: int) -> dict[str, Timing]:
    """Times every case relative to the first case, the baseline, which runs before or after each of its calls.

    A case is called with the number of the call, starting at 0, so that every call can differ. `warm` is the median
    time after the first call. `ratio` is the median ratio to the adjacent call of the baseline, because temporary load
    slows both calls. `processor_ratio` is that of the processor times, which other load hardly affects.
    """
    timings = {}
    for name, case in cases.items():
        with compilations() as compiled:
            first = seconds(lambda case=case: case(0))
        timings[name] = Timing(first, compiled)
    baseline, *others = cases
    pairs: dict[str, list[tuple[Clocks, Clocks]]] = {name: [] for name in others}
    for call in range(1, rounds + 1):
        for name in others:
            with compilations() as compiled:
                pairs[name].append(_pair(cases[baseline], cases[name], call))
            timings[name].compiled_warm.programs += compiled.programs
            timings[name].compiled_warm.seconds += compiled.seconds
    for name in others:
        timings[name].warm = statistics.median(time.wall for _, time in pairs[name])
        timings[name].ratio = statistics.median(time.wall / base.wall for base, time in pairs[name])
        timings[name].processor_ratio = statistics.median(time.processor / base.processor for base, time in pairs[name])
    timings[baseline].warm = statistics.median(base.wall for name in others for base, _ in pairs[name])
    return timings


PAUSE = 0.03
"""Seconds between two calls: the threads of PyTorch wait busily for some time after a call."""


def _pair(baseline: Callable[[int], Any], case: Callable[[int], Any], call: int) -> tuple[Clocks, Clocks]:
    """The times of baseline and case. They alternate in which runs first."""

    def rested(run: Callable[[int], Any]) -> Clocks:
        time.sleep(PAUSE)
        return clocks(lambda: run(call))

    if call % 2:
        return rested(baseline), rested(case)
    time_of_case = rested(case)
    return rested(baseline), time_of_case
