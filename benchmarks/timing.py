"""Times that can be compared on a machine that is doing other things too, and what was compiled meanwhile."""

import contextlib
import dataclasses
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

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


class Clocks(NamedTuple):
    """Seconds on the wall, and on processors, summed over this process's threads: others' load hardly changes those."""

    wall: float
    processor: float

    def __sub__(self, other: "Clocks") -> "Clocks":
        return Clocks(self.wall - other.wall, self.processor - other.processor)


def clocks(run: Callable[[], Any]) -> Clocks:
    """What `run` takes until every array it returns is there."""
    wall, processor = time.perf_counter(), time.process_time()
    jax.block_until_ready(run())
    return Clocks(time.perf_counter() - wall, time.process_time() - processor)


def median(times: Sequence[Clocks]) -> Clocks:
    """Clock by clock."""
    return Clocks(*map(statistics.median, zip(*times, strict=True)))


def seconds(run: Callable[[], Any]) -> float:
    """The wall time alone."""
    return clocks(run).wall


@dataclasses.dataclass
class Timing:
    """One case: its first call with what that compiled, then its warm calls, each paired with one of the baseline."""

    first: float
    compiled_first: Compilations
    warm: float = 0.0
    ratio: float = 1.0
    compiled_warm: Compilations = dataclasses.field(default_factory=Compilations)


def interleaved(cases: Mapping[str, Callable[[int], Any]], rounds: int) -> dict[str, Timing]:
    """Times every case against the first one, the baseline, which runs right beside it each time.

    A case is called with the number of the call (0 is the first one), so that it can do something new every time.
    `warm` is the median of its times after the first, `ratio` the median of the quotients of neighbours: a load that
    comes and goes slows both of a pair.
    """
    timings = {}
    for name, case in cases.items():
        with compilations() as compiled:
            first = seconds(lambda case=case: case(0))
        timings[name] = Timing(first, compiled)
    baseline, *others = cases
    pairs: dict[str, list[tuple[float, float]]] = {name: [] for name in others}
    for call in range(1, rounds + 1):
        for name in others:
            with compilations() as compiled:
                pairs[name].append(_pair(cases[baseline], cases[name], call))
            timings[name].compiled_warm.programs += compiled.programs
            timings[name].compiled_warm.seconds += compiled.seconds
    for name in others:
        timings[name].warm = statistics.median(own for _, own in pairs[name])
        timings[name].ratio = statistics.median(own / base for base, own in pairs[name])
    timings[baseline].warm = statistics.median(base for name in others for base, _ in pairs[name])
    return timings


def _pair(baseline: Callable[[int], Any], case: Callable[[int], Any], call: int) -> tuple[float, float]:
    """The times of both, which take turns at going first."""
    if call % 2:
        return seconds(lambda: baseline(call)), seconds(lambda: case(call))
    own = seconds(lambda: case(call))
    return seconds(lambda: baseline(call)), own
