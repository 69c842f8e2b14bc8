"""Tells what an output holds, and how far a run is that has not ended."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from furiosa_llm.dataset.run_lock import is_locked
from furiosa_llm.dataset.run_output import open_run_output
from furiosa_llm.dataset.target import OutputTarget
from furiosa_llm.errors import DatasetError

_LATENCIES = ("queue_s", "ttft_s", "tpot_s", "e2e_s")
_SUMMED = ("num_prompt_tokens", "num_output_tokens", "num_cached_tokens", "num_preemptions")
_COUNTED = ("finish_reason", "error_code", "replica")
_COLUMNS = (*_COUNTED, *_SUMMED, *_LATENCIES, "peak_blocks", "row_index", "error")
_SHARES = {"p50": 0.5, "p90": 0.9, "p99": 0.99, "max": 1.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class RunDescription:
    """What an output holds.

    Attributes:
        manifest: What the run was; empty where that is not told.
        num_rows: Rows.
        finish_reasons: How many ended in which way.
        error_counts: How many failed, by `error_code`.
        first_errors: The first row of each code, and why it failed.
        replicas: How many each replica answered.
        totals: Sums of tokens and preemptions over all rows.
        peak_blocks: The most KV-cache blocks that a row held.
        latencies: Seconds that half, nine tenths, 99 hundredths and all of the rows do not exceed,
            by column; only those that any row has.
    """

    manifest: Mapping[str, Any]
    num_rows: int
    finish_reasons: Mapping[str, int]
    error_counts: Mapping[str, int]
    first_errors: Mapping[str, tuple[int, str]]
    replicas: Mapping[int, int]
    totals: Mapping[str, int]
    peak_blocks: int
    latencies: Mapping[str, Mapping[str, float]]


@dataclass(frozen=True, slots=True, kw_only=True)
class UnfinishedRun:
    """How far a run is, or was when it ended early.

    Attributes:
        parts_folder: Where its finished rows are.
        is_running: Whether a process is at work on it.
        num_saved: How many are there, in closed files.
        status: What it told last: see `StatusFile`; empty if it told nothing.
    """

    parts_folder: Path
    is_running: bool
    num_saved: int
    status: Mapping[str, Any]


def describe_run(path: Path) -> RunDescription:
    """Reads an output once. Of each row four times are kept in memory, 32 bytes.

    Raises:
        DatasetError: It cannot be read, or is no output.
    """
    output = open_run_output(path)
    counts: dict[str, Counter[Any]] = {name: Counter() for name in _COUNTED}
    totals: Counter[str] = Counter(dict.fromkeys(_SUMMED, 0))
    times: dict[str, list[npt.NDArray[np.float64]]] = {name: [] for name in _LATENCIES}
    first_errors: dict[str, tuple[int, str]] = {}
    peak_blocks = 0
    for table in output.tables(_COLUMNS):
        for name, counter in counts.items():
            _count(table.column(name), counter)
        for name in _SUMMED:
            totals[name] += pc.sum(table.column(name)).as_py() or 0
        for name, parts in times.items():
            parts.append(table.column(name).drop_null().to_numpy())
        peak_blocks = max(peak_blocks, pc.max(table.column("peak_blocks")).as_py() or 0)
        _note_errors(table, first_errors)
    return RunDescription(
        manifest=output.manifest,
        num_rows=output.num_rows,
        finish_reasons=dict(counts["finish_reason"]),
        error_counts=dict(counts["error_code"]),
        first_errors=first_errors,
        replicas=dict(counts["replica"]),
        totals=dict(totals),
        peak_blocks=peak_blocks,
        latencies={
            name: _percentiles(np.concatenate(parts))
            for name, parts in times.items()
            if any(map(len, parts))
        },
    )


def describe_unfinished(path: Path) -> UnfinishedRun | None:
    """Tells how far the run is that writes an output; None if none has left anything.

    Raises:
        DatasetError: What it left cannot be read.
    """
    target = OutputTarget.of(path)
    if not target.parts_folder.is_dir():
        return None
    try:
        num_saved = sum(
            pq.read_metadata(part).num_rows for part in target.parts_folder.glob("part-*.parquet")
        )
        status = json.loads(target.status_path.read_text()) if target.status_path.exists() else {}
    except (OSError, ValueError, pa.ArrowException) as error:
        raise DatasetError(f"{target.parts_folder}: cannot be read: {error}") from error
    return UnfinishedRun(
        parts_folder=target.parts_folder,
        is_running=is_locked(target.parts_folder),
        num_saved=num_saved,
        status=status,
    )


def _count(column: pa.ChunkedArray, counter: Counter[Any]) -> None:
    for entry in pc.value_counts(column.drop_null()).to_pylist():
        counter[entry["values"]] += entry["counts"]


def _note_errors(table: pa.Table, first_errors: dict[str, tuple[int, str]]) -> None:
    failed = table.select(["row_index", "error_code", "error"]).filter(
        table.column("error_code").is_valid()
    )
    codes = set(pc.unique(failed.column("error_code")).to_pylist())
    for code in codes - first_errors.keys():
        row = failed.filter(pc.equal(failed.column("error_code"), code)).slice(0, 1).to_pylist()[0]
        first_errors[code] = row["row_index"], row["error"] or ""


def _percentiles(values: npt.NDArray[np.float64]) -> Mapping[str, float]:
    found = np.quantile(values, list(_SHARES.values()), method="inverted_cdf")
    return dict(zip(_SHARES, found.tolist(), strict=True))
