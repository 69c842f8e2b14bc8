"""Chooses which waiting request starts next, and whether it may."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from furiosa_llm.request import Request
from furiosa_llm.scheduling.admission_gate import GROUP_SHARE, AdmissionGate
from furiosa_llm.scheduling.answer_lengths import AnswerLengths
from furiosa_llm.scheduling.block_forecast import BlockForecast
from furiosa_llm.scheduling.kv_cache_manager import KVCacheManager
from furiosa_llm.scheduling.ordering import FifoQueue, OfflineQueue, WaitingQueue


@dataclass(frozen=True, slots=True, kw_only=True)
class Strategy:
    """How waiting requests are ordered and let in.

    Attributes:
        waiting: Their order.
        lengths: What is known of the lengths of answers, to let in only requests whose answers
            the blocks will suffice for; None to let in whatever they suffice for now.
        gate: Holds them back until several can start.
    """

    waiting: WaitingQueue[Request]
    lengths: AnswerLengths | None
    gate: AdmissionGate = field(default_factory=AdmissionGate)

    @classmethod
    def of(cls, *, is_offline: bool, favours_decodes: bool = False) -> Strategy:
        """Returns the one for throughput, or the one for someone who waits for each answer.

        Args:
            is_offline: Whether nobody waits for a single answer.
            favours_decodes: Whether a step that reads no prompt is worth waiting for.
        """
        if not is_offline:
            return cls(waiting=FifoQueue(), lengths=None)
        gate = AdmissionGate(GROUP_SHARE if favours_decodes else 0.0)
        return cls(waiting=OfflineQueue(), lengths=AnswerLengths(), gate=gate)


@dataclass(frozen=True, slots=True)
class Candidate:
    """A request that may start, and the blocks that hold its leading tokens already."""

    request: Request
    prefix: list[int]


class WaitingRoom:
    """The requests that hold no blocks."""

    def __init__(self, strategy: Strategy, kv_cache: KVCacheManager) -> None:
        self._waiting = strategy.waiting
        self._lengths = strategy.lengths
        self._kv_cache = kv_cache
        self._last_prompt: Sequence[int] = ()  # of the request that started last
        self._nothing_fits = False  # until something changes

    def add(self, request: Request) -> None:
        """Takes a new request in."""
        self._waiting.add(request)
        self._nothing_fits = False

    def put_back(self, request: Request) -> None:
        """Takes in a request that has given its blocks back."""
        self._waiting.put_back(request)
        self._nothing_fits = False

    def note_end(self, request: Request, *, is_whole: bool) -> None:
        """Takes note of a request that has ended; `is_whole` if its answer came to its own end."""
        self._nothing_fits = False
        if self._lengths is not None and is_whole:
            self._lengths.learn(request.num_output_tokens, request.max_tokens)

    def choose(self, running: Sequence[Request]) -> Candidate | None:
        """Returns the request that should start next beside those that run.

        That is the first in turn; or one whose prompt starts like the last one's, where the cache
        holds more of it. Where the blocks will not suffice for its answer, it is the largest
        request for which they will.
        """
        first = self._unfinished(lambda: self._waiting.first() if len(self._waiting) else None)
        if first is None:
            return None
        candidate = self._with_most_cached(first)
        if self._lengths is None or not running:
            return candidate
        forecast = BlockForecast(
            self._kv_cache.config,
            self._lengths,
            running,
            num_used_blocks=self._kv_cache.pool.num_used_blocks,
        )
        if self._fits(candidate, forecast):
            return candidate
        return None if self._nothing_fits else self._largest(forecast)

    def remove(self, request: Request) -> None:
        """Takes out a request that was chosen and starts."""
        self._waiting.remove(request)
        self._last_prompt = request.prompt_token_ids

    def _with_most_cached(self, first: Request) -> Candidate:
        prefix = self._kv_cache.find_prefix(first)
        config = self._kv_cache.config
        if config.enable_prefix_caching:
            similar = self._unfinished(
                lambda: self._waiting.similar(self._last_prompt, config.block_size)
            )
            if similar is not None and similar is not first:
                found = self._kv_cache.find_prefix(similar)
                if len(found) > len(prefix):
                    return Candidate(similar, found)
        return Candidate(first, prefix)

    def _largest(self, forecast: BlockForecast) -> Candidate | None:
        largest = self._unfinished(
            lambda: self._waiting.largest(lambda each: self._fits(Candidate(each, []), forecast))
        )
        self._nothing_fits = largest is None
        if largest is None:
            return None
        return Candidate(largest, self._kv_cache.find_prefix(largest))

    def _fits(self, candidate: Candidate, forecast: BlockForecast) -> bool:
        return forecast.has_room_for(
            candidate.request,
            num_cached_blocks=len(candidate.prefix),
            num_idle=sum(map(self._kv_cache.pool.is_free, candidate.prefix)),
        )

    def _unfinished(self, choose: Callable[[], Request | None]) -> Request | None:
        while (request := choose()) is not None and request.is_finished:
            self._waiting.remove(request)  # it was given up while it waited
        return request
