"""Where the launcher's process begins: it loads what it needs for what it is asked for."""

from __future__ import annotations

import os
import signal
import sys
from multiprocessing.connection import Connection

from furiosa_llm.library_imports.loading import loading_libraries
from furiosa_llm.library_imports.quick_torch import hasten_torch
from furiosa_llm.library_imports.quick_transformers import hasten_transformers
from furiosa_llm.replicas.messages import Launch
from furiosa_llm.replicas.parent_watch import ending_with


def main(descriptor: int) -> None:
    """Serves the parent at the other end of a connection until it is gone."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        # A supervisor may tell every process to stop; the parent decides when, for replicas too.
        signal.signal(number, signal.SIG_IGN)
    control = Connection(descriptor)
    try:
        launch: Launch = control.recv()
    except (EOFError, OSError):
        return  # the parent is gone already
    runs_ranks = launch.placement.num_processes_of_replica > 1
    if not runs_ranks:
        hasten_torch()
    hasten_transformers(launch.args.cache_dir, runs_ranks=runs_ranks)
    with ending_with(control), loading_libraries():
        from furiosa_llm.replicas.launcher import serve  # loads torch
    serve(control, launch)
    sys.stderr.flush()
    os._exit(0)  # the parent waits, and Python would free every object one by one first
