"""Keeps prompts back of which a core holds as many as it may."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable

from furiosa_llm.core_start import Core
from furiosa_llm.outputs import RequestOutput, StepStats
from furiosa_llm.request import TokenizedPrompt


class Backlog:
    """A core that is given no more than `max_processing_samples` prompts at once.

    The others wait here, first come, first served, wherever the core orders what it holds.
    """

    def __init__(self, core: Core) -> None:
        self._core = core
        self._max_held = core.limits.scheduler_config.max_processing_samples
        self._kept = OrderedDict[str, TokenizedPrompt]()  # by name

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
        return request_id in self._kept or request_id in self._core

    def add(self, prompt: TokenizedPrompt) -> None:
        """Hands a prompt to the core if it may hold one more, else keeps it.

        Raises:
            RequestError: The core refuses it.
        """
        if not self._kept and self._core.num_unfinished < self._max_held:
            self._core.add(prompt)
        else:
            self._kept[prompt.request_id] = prompt

    def waiting(self) -> list[str]:
        """Returns the prompts whose answers have not begun."""
        return [*self._core.waiting(), *self._kept]

    def abort(self, request_ids: Iterable[str]) -> None:
        """Gives prompts up."""
        names = set(request_ids)
        self._core.abort(names - self._kept.keys())
        for name in names & self._kept.keys():
            del self._kept[name]

    def step(self) -> list[RequestOutput]:
        """Fills the core up and goes on until there is something to tell."""
        while self._kept and self._core.num_unfinished < self._max_held:
            _, prompt = self._kept.popitem(last=False)
            self._core.add(prompt)
        return self._core.step()

    def close(self) -> None:
        """Ends the core's threads and processes."""
        self._core.close()
