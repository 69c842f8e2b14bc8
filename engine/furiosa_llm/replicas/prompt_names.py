"""Names for the prompts behind a pool, no two of which are ever the same."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterable, Sequence

from furiosa_llm.outputs import RequestOutput
from furiosa_llm.request import TokenizedPrompt


class PromptNames:
    """The callers' names of unfinished prompts, and the number that each goes by in the pool.

    A caller may use a name again as soon as its prompt is answered or aborted. A replica may still
    be working on the first one then: what it says of it must not be taken for the second one's.
    """

    def __init__(self) -> None:
        self._numbers = itertools.count()
        self._own: dict[str, str] = {}  # by the caller's name
        self._given: dict[str, str] = {}  # by our own

    def __contains__(self, given: str) -> bool:
        return given in self._own

    def __len__(self) -> int:
        return len(self._own)

    def add(self, prompt: TokenizedPrompt) -> TokenizedPrompt:
        """Returns the prompt under a name of its own. Its random draws stay the same."""
        given, own = prompt.request_id, str(next(self._numbers))
        assert given not in self._own, f"{given!r} is unfinished"
        self._own[given], self._given[own] = own, given
        return dataclasses.replace(prompt, request_id=own, callers_name=prompt.seed_name)

    def given(self, own: Iterable[str]) -> list[str]:
        """Returns the callers' names of prompts."""
        return [self._given[name] for name in own]

    def remove(self, given: Iterable[str]) -> set[str]:
        """Forgets prompts by the callers' names, and returns their own; unknown ones are left."""
        own = {self._own.pop(name) for name in set(given) if name in self._own}
        for name in own:
            del self._given[name]
        return own

    def outputs(self, outputs: Sequence[RequestOutput]) -> list[RequestOutput]:
        """Returns outputs under the callers' names, and forgets the prompts that are finished."""
        names = self.given(output.request_id for output in outputs)
        self.remove(n for n, output in zip(names, outputs, strict=True) if output.finished)
        return [
            dataclasses.replace(output, request_id=name)
            for name, output in zip(names, outputs, strict=True)
        ]
