"""Joins the processes that run one replica: tensor-parallel ranks, pipeline stages, or both.

Ranks of one stage are neighbours: rank = stage * tensor-parallel size + tensor rank. The ranks of
a stage sum up and gather among themselves; hidden states go from a stage to the next between
ranks of the same tensor rank.
"""

from __future__ import annotations

import os
import time
from collections import deque
from dataclasses import dataclass
from datetime import timedelta
from urllib.parse import urlsplit

import torch
import torch.distributed as dist

from furiosa_llm.errors import ConfigError

# More steps than a scheduler keeps in flight. A send that is waited for slows a stage down; one
# that is not keeps its hidden states in memory.
MAX_UNFINISHED_SENDS = 8

# A model is split on the host, where ranks sum up a few tokens to see what its layers do.
_BACKENDS = {"cpu": "gloo", "cuda": "cpu:gloo,cuda:nccl"}
_LOOPBACK_HOSTS = frozenset({"localhost", "127.0.0.1", "::1"})


@dataclass(frozen=True, slots=True, kw_only=True)
class RankPlace:
    """Where a process stands in its replica, and how it meets the others.

    Attributes:
        pipeline_rank: Its stage, from 0.
        tensor_rank: Its place among the ranks of the stage, from 0.
        pipeline_parallel_size: Stages of the replica.
        tensor_parallel_size: Ranks of each stage.
        rendezvous: A file that does not exist yet, the same for all ranks of one machine, or
            `tcp://host:port` of the first rank.
        device: As torch names it: `cpu`, `cuda:1`.
        timeout_seconds: How long a rank waits for another, in joining as in each exchange.
    """

    pipeline_rank: int
    tensor_rank: int
    pipeline_parallel_size: int
    tensor_parallel_size: int
    rendezvous: str
    device: str = "cpu"
    timeout_seconds: float = 600.0

    def __post_init__(self) -> None:
        if not 0 <= self.pipeline_rank < self.pipeline_parallel_size:
            raise ConfigError(
                f"pipeline_rank must be in [0, {self.pipeline_parallel_size}), got "
                f"{self.pipeline_rank}"
            )
        if not 0 <= self.tensor_rank < self.tensor_parallel_size:
            raise ConfigError(
                f"tensor_rank must be in [0, {self.tensor_parallel_size}), got {self.tensor_rank}"
            )
        if torch.device(self.device).type not in _BACKENDS:
            raise ConfigError(f"ranks run on cpu or cuda, got device {self.device!r}")

    @property
    def rank(self) -> int:
        """The place among all ranks of the replica."""
        return self.pipeline_rank * self.tensor_parallel_size + self.tensor_rank

    @property
    def num_ranks(self) -> int:
        """Ranks of the replica."""
        return self.pipeline_parallel_size * self.tensor_parallel_size

    @property
    def is_on_one_machine(self) -> bool:
        """Whether all ranks are known to be here."""
        if "://" not in self.rendezvous:
            return True
        return urlsplit(self.rendezvous).hostname in _LOOPBACK_HOSTS


class TensorRanks:
    """The ranks of one stage. See `TensorGroup`."""

    def __init__(self, group: dist.ProcessGroup | None, *, rank: int, size: int) -> None:
        self._group = group
        self.rank = rank
        self.size = size

    def sum(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the sum of the ranks' tensors, the same on every rank. May change `tensor`."""
        tensor = tensor.contiguous()
        dist.all_reduce(tensor, group=self._group)
        return tensor

    def concatenate(self, tensor: torch.Tensor) -> torch.Tensor:
        """Returns the tensors of all ranks, of one shape, side by side in the last dimension."""
        parts = [torch.empty_like(tensor) for _ in range(self.size)]
        dist.all_gather(parts, tensor.contiguous(), group=self._group)
        return torch.cat(parts, dim=-1)


class NeighbourLink:
    """The way to the stages before and after. See `StageLink`."""

    def __init__(self, *, previous_rank: int, next_rank: int) -> None:
        self._previous_rank = previous_rank
        self._next_rank = next_rank
        self._unfinished: deque[tuple[dist.Work, torch.Tensor]] = deque()
        self.waited_seconds = 0.0

    def send(self, hidden: torch.Tensor) -> None:
        """Sends hidden states to the next stage. It does not wait until they are there."""
        if len(self._unfinished) == MAX_UNFINISHED_SENDS:
            self._finish_oldest()
        hidden = hidden.contiguous()
        work = dist.isend(hidden, self._next_rank)
        assert work is not None, "this rank is part of the group"
        self._unfinished.append((work, hidden))  # the memory must stay until it is sent

    def receive(self, like: torch.Tensor) -> torch.Tensor:
        """Waits for hidden states of the stage before: of the shape, type and device of `like`."""
        hidden = torch.empty(like.shape, dtype=like.dtype, device=like.device)
        start = time.perf_counter()
        dist.recv(hidden, self._previous_rank)
        self.waited_seconds += time.perf_counter() - start
        return hidden

    def finish(self) -> None:
        """Waits until everything is sent."""
        while self._unfinished:
            self._finish_oldest()

    def _finish_oldest(self) -> None:
        work, _ = self._unfinished[0]
        work.wait()
        self._unfinished.popleft()


class RankGroup:
    """What a rank can do together with the others. `join` makes it."""

    def __init__(self, place: RankPlace, tensor_ranks: TensorRanks) -> None:
        self.place = place
        self.device = torch.device(place.device)
        self.tensor_ranks = tensor_ranks
        self.link = NeighbourLink(
            previous_rank=place.rank - place.tensor_parallel_size,
            next_rank=place.rank + place.tensor_parallel_size,
        )

    def smallest(self, number: int) -> int:
        """Returns the smallest of the numbers that all ranks of the replica give."""
        agreed = torch.tensor([number], device=self.device)
        dist.all_reduce(agreed, op=dist.ReduceOp.MIN)
        return int(agreed.item())

    def leave(self) -> None:
        """Ends the connections, once what was sent has arrived. No exchange is possible after."""
        try:
            self.link.finish()
        finally:
            dist.destroy_process_group()


def join(place: RankPlace) -> RankGroup:
    """Meets the other ranks of the replica. A process can be in one group at a time.

    Raises:
        RuntimeError: The others did not come in time.
    """
    device = torch.device(place.device)
    if place.is_on_one_machine:
        # Otherwise the host's name is looked up, which a container without network cannot answer.
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        os.environ.setdefault("NCCL_SOCKET_IFNAME", "lo")
    if device.type == "cuda":
        torch.cuda.set_device(device)
    rendezvous = place.rendezvous
    dist.init_process_group(
        _BACKENDS[device.type],
        init_method=rendezvous if "://" in rendezvous else f"file://{rendezvous}",
        rank=place.rank,
        world_size=place.num_ranks,
        timeout=timedelta(seconds=place.timeout_seconds),
        device_id=device if device.type == "cuda" else None,
    )
    own = None
    size = place.tensor_parallel_size
    for stage in range(place.pipeline_parallel_size):  # every rank has to make every group
        group = dist.new_group(list(range(stage * size, (stage + 1) * size)))
        if stage == place.pipeline_rank:
            own = group
    joined = RankGroup(place, TensorRanks(own, rank=place.tensor_rank, size=size))
    # A rank that finds fault with the options ends at once. Only when all are here does each of the
    # others find the same, and not a connection that is gone.
    joined.smallest(0)
    return joined
