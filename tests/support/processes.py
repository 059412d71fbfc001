"""Processes that run together, such as those of a distributed run."""

import contextlib
import socket
import subprocess
import time
from collections.abc import Mapping, Sequence
from typing import Any


def free_port() -> int:
    with socket.socket() as free:
        free.bind(("localhost", 0))
        return free.getsockname()[1]


def run_together(commands: Sequence[Sequence[Any]], environment: Mapping[str, str], timeout: float = 300) -> list[str]:
    """What each of the commands printed. One that fails ends the others, which may wait for it forever."""
    with contextlib.ExitStack() as stack:
        processes = [
            stack.enter_context(subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True))
            for command in commands
        ]
        for process in processes:
            stack.callback(process.kill)
        deadline = time.monotonic() + timeout
        while any(process.poll() is None for process in processes):
            assert time.monotonic() < deadline, f"no end after {timeout} seconds: {commands}"
            assert not any(process.poll() for process in processes), "a process failed; it says why above"
            time.sleep(0.05)
        assert [process.returncode for process in processes] == [0] * len(processes)
        return [process.stdout.read() for process in processes]
