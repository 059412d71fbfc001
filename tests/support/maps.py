"""Compiled programs that are kept in a process."""

from pathlib import Path

import jax

MOST_MAPS = 15_000


def forget_programs() -> None:
    """Forgets all compiled programs if there are many.

    A process may map only so many pieces of memory (65,530), and every compiled program takes several: in one that has
    run most files, the next would end it. Until then programs are kept, because files share some.
    """
    maps = Path("/proc/self/maps")
    if not maps.exists() or len(maps.read_text().splitlines()) > MOST_MAPS:
        jax.clear_caches()
