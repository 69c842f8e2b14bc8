"""Which tokens the grammar of each answer lets come next."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from furiosa_llm.errors import RequestError, StructureFailedError
from furiosa_llm.execution.grammars import Grammars, Matcher
from furiosa_llm.scheduler_output import SamplingInputs
from furiosa_llm.structured_outputs import StructuredOutputs

MAX_KEPT = 512


@dataclass(slots=True)
class _Place:
    """How far a matcher has come."""

    matcher: Matcher
    num_tokens: int


class GrammarMasks:
    """The matchers of the answers in progress.

    What comes next follows from the form and the tokens so far alone: a matcher that is not there,
    after a preemption for example, is built again from them.
    """

    def __init__(self, grammars: Grammars, *, max_kept: int = MAX_KEPT) -> None:
        """Keeps up to `max_kept` matchers, or those of one step if they are more."""
        self._grammars = grammars
        self._max_kept = max_kept
        self._places: OrderedDict[int, _Place] = OrderedDict()  # by request, least used first

    def masks(
        self, request_ids: Sequence[int], inputs: Sequence[SamplingInputs]
    ) -> tuple[dict[int, torch.Tensor], dict[int, RequestError]]:
        """Finds what each row must not choose.

        Returns:
            By row, [V] bool: the forbidden tokens. By request, why it cannot go on: its grammar
            has met a limit, and only the end of the sequence is left.
        """
        forbidden: dict[int, torch.Tensor] = {}
        failures: dict[int, RequestError] = {}
        for row, (request_id, entry) in enumerate(zip(request_ids, inputs, strict=True)):
            structure = entry.params.structured_outputs
            if structure is None:
                continue
            matcher = self._matcher(request_id, structure, entry.output_token_ids)
            forbidden[row] = self._forbidden(matcher)
            if matcher.is_error():
                reason = " ".join(matcher.get_error().split())
                failures[request_id] = StructureFailedError(
                    f"structured_outputs cannot go on: {reason[:200]}"
                )
        while len(self._places) > max(self._max_kept, len(forbidden)):
            self._places.popitem(last=False)
        return forbidden, failures

    def _matcher(
        self, request_id: int, structure: StructuredOutputs, token_ids: Sequence[int]
    ) -> Matcher:
        place = self._places.get(request_id)
        if place is None or place.num_tokens > len(token_ids):
            place = _Place(self._grammars.start(structure), 0)
            self._places[request_id] = place
        place.matcher.consume_tokens(list(token_ids[place.num_tokens :]))
        place.num_tokens = len(token_ids)
        self._places.move_to_end(request_id)
        return place.matcher

    def _forbidden(self, matcher: Matcher) -> torch.Tensor:
        bits = np.frombuffer(matcher.compute_bitmask(), np.uint8)
        allowed = np.unpackbits(bits, count=self._grammars.vocab_size, bitorder="little")
        return torch.from_numpy(allowed == 0)
