"""Keeps prompts back of which a core holds as many as it may."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable

from furiosa_llm.core_start import Core
from furiosa_llm.engine_limits import EngineLimits
from furiosa_llm.outputs import RequestOutput, StepStats
from furiosa_llm.request import TokenizedPrompt


class Backlog:
    """A core that is given no more than `max_processing_samples` prompts at once.

    The others wait here, first come, first served, wherever the core orders what it holds.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._max_held = core.limits.scheduler_config.max_processing_samples
        self._kept: deque[TokenizedPrompt] = deque()
        self._names: set[str] = set()  # of those that are kept

    @property
    def limits(self) -> EngineLimits:
        """What the core was built for."""
        return self._core.limits

    @property
    def last_steps(self) -> list[StepStats]:
        """The steps that the last call of `step` booked."""
        return self._core.last_steps

    @property
    def num_unfinished(self) -> int:
        """Prompts whose answers are not complete."""
        return self._core.num_unfinished + len(self._kept)

    def __contains__(self, request_id: str) -> bool:
        """Tells whether a prompt of this name is unfinished."""
        return request_id in self._names or request_id in self._core

    def add(self, prompt: TokenizedPrompt) -> None:
        """Hands a prompt to the core if it may hold one more, else keeps it.

        Raises:
            RequestError: The core refuses it.
        """
        if not self._kept and self._core.num_unfinished < self._max_held:
            self._core.add(prompt)
        else:
            self._kept.append(prompt)
            self._names.add(prompt.request_id)

    def waiting(self) -> list[str]:
        """Returns the prompts whose answers have not begun."""
        return [*self._core.waiting(), *(prompt.request_id for prompt in self._kept)]

    def abort(self, request_ids: Iterable[str]) -> None:
        """Gives prompts up."""
        names = set(request_ids)
        if names & self._names:
            self._kept = deque(one for one in self._kept if one.request_id not in names)
        self._core.abort(names - self._names)
        self._names -= names

    def step(self) -> list[RequestOutput]:
        """Fills the core up and goes on until there is something to tell."""
        while self._kept and self._core.num_unfinished < self._max_held:
            prompt = self._kept.popleft()
            self._names.remove(prompt.request_id)
            self._core.add(prompt)
        return self._core.step()

    def close(self) -> None:
        """Ends the core's threads and processes."""
        self._core.close()
