"""One row of the output."""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from dataclasses import dataclass

from furiosa_llm.dataset.packed_logprobs import PackedLogprobs
from furiosa_llm.dataset.record import PromptRecord
from furiosa_llm.errors import RequestError
from furiosa_llm.outputs import CompletionOutput, RequestOutput
from furiosa_llm.row_limits import MAX_ERROR_CHARACTERS

CANCELLED = "cancelled"
ERROR = "error"

_NO_TOKENS = array("i")


@dataclass(frozen=True, slots=True, kw_only=True)
class AnswerRow:
    """One row of the output; the fields are its columns.

    Attributes:
        token_ids: 4 bytes each, as thousands of rows wait to be written.
        completions: All n answers; None when there is one.
        logprobs: Of the first answer, where they are asked for.
        carried: The input's own columns.
    """

    row_index: int
    request_id: str
    text: str
    token_ids: array[int]
    completions: tuple[CompletionOutput, ...] | None
    cumulative_logprob: float | None
    logprobs: PackedLogprobs | None
    prompt_logprobs: PackedLogprobs | None
    finish_reason: str
    stop_reason: str | None
    error_code: str | None
    error: str | None
    num_prompt_tokens: int
    num_output_tokens: int
    num_cached_tokens: int
    queue_s: float | None
    ttft_s: float | None
    tpot_s: float | None
    e2e_s: float | None
    peak_blocks: int
    block_seconds: float
    num_preemptions: int
    num_recomputed_tokens: int
    replica: int
    carried: Mapping[str, object]


def answer_of(record: PromptRecord, output: RequestOutput) -> AnswerRow:
    """Joins an answer, or the reason why there is none, with the row that asked for it."""
    error = output.error
    if error is not None and not output.outputs:
        return error_answer(record.row_index, record.request_id, record.carried, error)
    first = output.outputs[0]
    metrics = output.metrics
    reason = None if first.stop_reason is None else str(first.stop_reason)
    return AnswerRow(
        row_index=record.row_index,
        request_id=record.request_id,
        text=first.text,
        token_ids=array("i", first.token_ids),
        completions=tuple(output.outputs) if record.sampling_params.n > 1 else None,
        cumulative_logprob=first.cumulative_logprob,
        logprobs=PackedLogprobs.of(first.logprobs),
        prompt_logprobs=PackedLogprobs.of(output.prompt_logprobs),
        finish_reason=first.finish_reason or CANCELLED,
        stop_reason=reason,
        error_code=None if error is None else error.code,
        error=None if error is None else str(error),
        num_prompt_tokens=output.num_prompt_tokens,
        num_output_tokens=output.num_output_tokens,
        num_cached_tokens=output.num_cached_tokens,
        queue_s=metrics.queue_s,
        ttft_s=metrics.ttft_s,
        tpot_s=metrics.tpot_s,
        e2e_s=metrics.e2e_s,
        peak_blocks=metrics.peak_blocks,
        block_seconds=metrics.block_seconds,
        num_preemptions=metrics.num_preemptions,
        num_recomputed_tokens=metrics.num_recomputed_tokens,
        replica=output.replica,
        carried=record.carried,
    )


def error_answer(
    row_index: int, request_id: str, carried: Mapping[str, object], error: RequestError
) -> AnswerRow:
    """Says of a row why it has no answer."""
    return AnswerRow(
        row_index=row_index,
        request_id=request_id,
        text="",
        token_ids=_NO_TOKENS,
        completions=None,
        cumulative_logprob=None,
        logprobs=None,
        prompt_logprobs=None,
        finish_reason=ERROR,
        stop_reason=None,
        error_code=error.code,
        error=str(error)[:MAX_ERROR_CHARACTERS],
        num_prompt_tokens=getattr(error, "num_prompt_tokens", 0),
        num_output_tokens=0,
        num_cached_tokens=0,
        queue_s=None,
        ttft_s=None,
        tpot_s=None,
        e2e_s=None,
        peak_blocks=0,
        block_seconds=0.0,
        num_preemptions=0,
        num_recomputed_tokens=0,
        replica=0,
        carried=carried,
    )
