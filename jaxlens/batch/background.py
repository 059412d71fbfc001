"""Work in the background: items made ahead in a thread."""

import queue
import threading
from collections.abc import Generator, Iterable
from typing import Any, TypeVar

Item = TypeVar("Item")
_END = object()


def made_ahead(items: Iterable[Item], n_ahead: int = 2) -> Generator[Item, None, None]:
    """The same items, made by a thread that is at most `n_ahead` items ahead. An error is raised where it occurred.

    Closing the iterator stops the thread after its present item.

    Example:
        >>> list(made_ahead(range(3)))
        [0, 1, 2]
    """
    waiting: queue.Queue[Any] = queue.Queue(n_ahead)
    stopped = threading.Event()

    def put(entry: Any) -> bool:
        while not stopped.is_set():
            try:
                waiting.put(entry, timeout=0.1)
            except queue.Full:
                continue
            return True
        return False

    def work() -> None:
        try:
            for item in items:
                if not put((item, None)):
                    return
            put((_END, None))
        except BaseException as error:  # raised again in the thread that reads
            put((_END, error))

    threading.Thread(target=work, daemon=True, name="jaxlens-reader").start()
    try:
        while True:
            item, error = waiting.get()
            if error is not None:
                raise error
            if item is _END:
                return
            yield item
    finally:
        stopped.set()
