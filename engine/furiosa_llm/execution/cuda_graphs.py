"""Records work as CUDA graphs."""

from __future__ import annotations

import torch

from furiosa_llm.execution.decode_graphs import Work


class CudaGraphRecorder:
    """Records into graphs that share memory for what they compute along the way."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._pool = torch.cuda.graph_pool_handle()
        self._stream: torch.cuda.Stream | None = None  # one for all: memory is kept for each

    def record(self, work: Work) -> Work:
        """See `GraphRecorder`. The work is done twice, the second time as a graph."""
        with torch.cuda.device(self._device):
            if self._stream is None:
                self._stream = torch.cuda.Stream(self._device)  # type: ignore[no-untyped-call]
            stream = self._stream
            stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(stream):
                work()  # what is set up on a first call must not become a part of the graph
            torch.cuda.current_stream().wait_stream(stream)
            graph = torch.cuda.CUDAGraph()
            # Other threads may go on with calls that a graph of theirs would not allow.
            with torch.cuda.graph(graph, pool=self._pool, capture_error_mode="thread_local"):
                work()
            graph.replay()
        return graph.replay
