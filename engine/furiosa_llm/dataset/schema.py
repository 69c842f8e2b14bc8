"""The columns of the output."""

from __future__ import annotations

from collections.abc import Iterable

import pyarrow as pa

from furiosa_llm.dataset.packed_logprobs import LOGPROBS_TYPE

COMPLETION_TYPE = pa.struct(
    [
        ("index", pa.int32()),
        ("text", pa.string()),
        ("token_ids", pa.list_(pa.int32())),
        ("finish_reason", pa.string()),
        ("stop_reason", pa.string()),
        ("cumulative_logprob", pa.float64()),
        ("logprobs", LOGPROBS_TYPE),
    ]
)


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


ANSWER_SCHEMA = pa.schema(
    [
        _required("row_index", pa.int64()),
        _required("request_id", pa.string()),
        _required("text", pa.string()),
        _required("token_ids", pa.list_(pa.int32())),
        pa.field("completions", pa.list_(COMPLETION_TYPE)),
        pa.field("cumulative_logprob", pa.float64()),
        pa.field("logprobs", LOGPROBS_TYPE),
        pa.field("prompt_logprobs", LOGPROBS_TYPE),
        _required("finish_reason", pa.string()),
        pa.field("stop_reason", pa.string()),
        pa.field("error_code", pa.string()),
        pa.field("error", pa.string()),
        _required("num_prompt_tokens", pa.int32()),
        _required("num_output_tokens", pa.int32()),
        _required("num_cached_tokens", pa.int32()),
        pa.field("queue_s", pa.float64()),
        pa.field("ttft_s", pa.float64()),
        pa.field("tpot_s", pa.float64()),
        pa.field("e2e_s", pa.float64()),
        _required("peak_blocks", pa.int32()),
        _required("block_seconds", pa.float64()),
        _required("num_preemptions", pa.int32()),
        _required("num_recomputed_tokens", pa.int32()),
        _required("replica", pa.int16()),
    ]
)


AS_READ_COLUMN = "furiosa_llm.as_read"  # in the output of a shard
OTHER_COLUMN = "furiosa_llm.other_columns"  # in an output of very many columns


def output_names(carried: Iterable[str]) -> dict[str, str]:
    """Names the input's own columns in the output; one that clashes becomes `input_NAME`."""
    names = list(carried)
    reserved = {*ANSWER_SCHEMA.names, AS_READ_COLUMN, OTHER_COLUMN}
    taken = {*reserved, *names}
    chosen: dict[str, str] = {}
    for name in names:
        output_name = name
        if name in reserved:
            while output_name in taken:
                output_name = f"input_{output_name}"
        taken.add(output_name)
        chosen[name] = output_name
    return chosen
