"""Ends a process that is busy when its parent is gone."""

from __future__ import annotations

import contextlib
import os
import select
import threading
from collections.abc import Iterator
from multiprocessing.connection import Connection

_POLL_MILLISECONDS = 100


@contextlib.contextmanager
def ending_with(connection: Connection) -> Iterator[None]:
    """Ends the process inside the block as soon as the connection's other end closes.

    A thread looks at the connection and reads nothing; it is gone when the block is left.
    """
    done = threading.Event()

    def watch() -> None:
        poll = select.poll()
        poll.register(connection.fileno(), 0)  # a closed end is always told
        while not done.is_set():
            if poll.poll(_POLL_MILLISECONDS):
                os._exit(0)

    thread = threading.Thread(target=watch, name="parent-watch", daemon=True)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()
