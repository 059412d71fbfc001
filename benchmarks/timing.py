"""Times that can be compared on a machine that is doing other things too, and what was compiled meanwhile."""

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import jax

_TRACE, _LOWER, _COMPILE = (
    f"/jax/core/compile/{name}_duration" for name in ("jaxpr_trace", "jaxpr_to_mlir_module", "backend_compile")
)


@dataclasses.dataclass
class Compilations:
    """What JAX compiled during a `with compilations()` block: the programs by name, and the seconds they took in all
    (tracing, lowering, compiling)."""

    programs: list[str] = dataclasses.field(default_factory=list)
    seconds: float = 0.0

    def __len__(self) -> int:
        return len(self.programs)


@contextlib.contextmanager
def compilations() -> Iterator[Compilations]:
    """Counts every program that JAX compiles while the block runs."""
    found = Compilations()

    def listen(event: str, seconds: float, **details: Any) -> None:
        if event in (_TRACE, _LOWER, _COMPILE):
            found.seconds += seconds
        if event == _COMPILE:
            found.programs.append(str(details.get("fun_name", "?")))

    jax.monitoring.register_event_duration_secs_listener(listen)
    try:
        yield found
    finally:
        jax.monitoring.unregister_event_duration_listener(listen)


def seconds(run: Callable[[], Any]) -> float:
    """How long `run` takes until every array it returns is there."""
    start = time.perf_counter()
    jax.block_until_ready(run())
    return time.perf_counter() - start


@dataclasses.dataclass
class Timing:
    """One case: its first call with what that compiled, then its warm calls, each paired with one of its baseline."""

    first: float
    compiled_first: Compilations
    warm: float
    ratio: float
    compiled_warm: Compilations


def interleaved(
    baseline: Callable[[], Any], cases: Mapping[str, Callable[[int], Any]], rounds: int
) -> dict[str, Timing]:
    """Times every case against the baseline, which runs right beside it each time.

    A case is called with the number of the call (0 is the first one), so that it can do something new every time.
    `warm` is the median of its times after the first, `ratio` the median of the quotients of neighbours: a load that
    comes and goes slows both of a pair.
    """
    jax.block_until_ready(baseline())
    timings = {}
    for name, case in cases.items():
        with compilations() as compiled:
            first = seconds(lambda case=case: case(0))
        timings[name] = Timing(first, compiled, 0.0, 0.0, Compilations())
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    for i in range(1, rounds + 1):
        for name, case in cases.items():
            with compilations() as compiled:
                pairs[name].append(_pair(baseline, lambda case=case, i=i: case(i), baseline_first=i % 2 == 0))
            timings[name].compiled_warm.programs += compiled.programs
            timings[name].compiled_warm.seconds += compiled.seconds
    for name, timing in timings.items():
        timing.warm = statistics.median(own for _, own in pairs[name])
        timing.ratio = statistics.median(own / base for base, own in pairs[name])
    return timings


def _pair(baseline: Callable[[], Any], case: Callable[[], Any], baseline_first: bool) -> tuple[float, float]:
    if baseline_first:
        base = seconds(baseline)
        return base, seconds(case)
    own = seconds(case)
    return seconds(baseline), own
