"""Finds which requests make a step fail."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

from furiosa_llm.errors import EngineError, PromptFailedError, RequestError
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.scheduler_output import (
    SamplingInputs,
    ScheduledRequest,
    SchedulerOutput,
    StepResult,
)

_MAX_REASON_CHARACTERS = 500


class Bisection:
    """A failed step, run again in halves, and halves of those that fail.

    Each share writes the same tokens to the same places as before, so nothing has to be taken back
    first. A request that fails alone is to blame if the engine can still run a step of one
    harmless token; if not, the engine is what has failed.
    """

    def __init__(
        self,
        step: SchedulerOutput,
        run: Callable[[SchedulerOutput], StepResult],
        *,
        block_size: int,
        harmless_token_id: int,
    ) -> None:
        """Prepares to run a step again.

        Args:
            step: No other may be in flight, and all its tokens are known.
            run: Runs a step.
            block_size: Tokens in a block.
            harmless_token_id: What every model can read, its end of sequence for example.
        """
        self._step = step
        self._run = run
        self._block_size = block_size
        self._harmless_token_id = harmless_token_id
        self._results: list[StepResult] = []
        self._failures: dict[int, RequestError] = {}
        self._spoiled: set[int] = set()  # blocks that a request to blame was to fill

    def result(self, error: Exception) -> StepResult:
        """Returns what the step brings without the requests to blame, which are its failures.

        Requests that wait for what those were to write are in no part of it.

        Args:
            error: How the whole step has failed.

        Raises:
            EngineError: The engine can run nothing any more.
        """
        self._split(self._step.requests, error)
        parts = self._results
        return StepResult(
            token_ids={k: v for part in parts for k, v in part.token_ids.items()},
            model_seconds=sum(part.model_seconds for part in parts),
            sample_seconds=sum(part.sample_seconds for part in parts),
            logprobs={k: v for part in parts for k, v in part.logprobs.items()},
            prompt_logprobs={k: v for part in parts for k, v in part.prompt_logprobs.items()},
            failures={k: v for part in parts for k, v in part.failures.items()} | self._failures,
        )

    def _split(self, shares: Sequence[ScheduledRequest], error: Exception) -> None:
        """Runs requests in two halves that have failed together."""
        if len(shares) == 1:
            self._blame(shares[0], error)
            return
        middle = len(shares) // 2
        for half in (shares[:middle], shares[middle:]):
            self._try(half)

    def _try(self, shares: Sequence[ScheduledRequest]) -> None:
        shares = [share for share in shares if self._spoiled.isdisjoint(share.block_ids)]
        if not shares:
            return
        try:
            self._results.append(self._run(self._step_of(shares)))
        except EngineError:
            raise
        except Exception as error:  # noqa: BLE001 - a model may raise anything
            self._split(shares, error)

    def _blame(self, share: ScheduledRequest, error: Exception) -> None:
        written = share.block_ids[share.start_position // self._block_size :]
        self._spoiled.update(written)
        try:
            self._run(self._step_of([self._harmless(written[-1])]))
        except Exception:  # noqa: BLE001 - as above
            raise EngineError(reason_of(error)) from error
        self._failures[share.request_id] = PromptFailedError(
            f"the engine failed while it answered this prompt: {reason_of(error)}"
        )

    def _step_of(self, shares: Sequence[ScheduledRequest]) -> SchedulerOutput:
        return dataclasses.replace(self._step, requests=tuple(shares))

    def _harmless(self, block_id: int) -> ScheduledRequest:
        """Makes the share of a request that is none, in a block that holds nothing of use."""
        return ScheduledRequest(
            request_id=-1,
            token_ids=(self._harmless_token_id,),
            start_position=0,
            block_ids=(block_id,),
            sampling=SamplingInputs(params=SamplingParams(temperature=0), seed=0, position=0),
        )


def reason_of(error: Exception) -> str:
    """Returns what an exception says, on one line."""
    text = " ".join(str(error).split())[:_MAX_REASON_CHARACTERS]
    return text or type(error).__name__
