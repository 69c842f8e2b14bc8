"""What must hold for every input, however broken it is."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import pyarrow.parquet as pq

from furiosa_llm.dataset.answer import AnswerRow, error_answer
from furiosa_llm.dataset.columns import ColumnMapping
from furiosa_llm.dataset.manifest import Manifest
from furiosa_llm.dataset.reader import open_input
from furiosa_llm.dataset.record import RawRow, identify, parse_row
from furiosa_llm.dataset.writer import AnswerWriter
from furiosa_llm.errors import InvalidParamsError, InvalidRowError, RequestError
from furiosa_llm.row_limits import MAX_ERROR_CHARACTERS
from furiosa_llm.sampling_params import SamplingParams

CORPUS = Path(__file__).parents[1] / "corpus" / "rows"
MAX_SECONDS = 2.0  # of processor time for one small input

DEFAULTS = SamplingParams(max_tokens=8)
MAPPINGS = (
    ColumnMapping(),
    ColumnMapping(prompt_column="x", params_column="o"),
    ColumnMapping(template="{{ row.prompt }}{% for name in row %}{{ row[name] }}{% endfor %}"),
)


def check_rows(content: bytes) -> int:
    """Reads and understands rows: one comes out for each that goes in. Returns how many."""
    started = time.process_time()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "rows.jsonl"
        path.write_bytes(content)
        source = open_input(str(path), max_line_bytes=4096)
        rows = list(source.rows())
        assert [row.row_index for row in rows] == list(range(len(rows)))
        assert source.count_rows() == len(rows)
    for row in rows:
        assert (row.data is None) == (row.error is not None)
        for columns in MAPPINGS:
            _check_row(row, columns)
    assert time.process_time() - started < MAX_SECONDS
    return len(rows)


def check_written(content: bytes) -> None:
    """Writes what the rows carry: each of them is in the output once and in order."""
    with tempfile.TemporaryDirectory() as folder:
        path, output = Path(folder) / "rows.jsonl", Path(folder) / "out.parquet"
        path.write_bytes(content)
        answers = [
            error_answer(row.row_index, *identify(row, ColumnMapping()), InvalidRowError("x"))
            for row in open_input(str(path), max_line_bytes=4096).rows()
        ]
        _check_output(output, answers)


def check_params(changes: Mapping[str, object]) -> None:
    """Takes parameters, or refuses them by a message of readable length."""
    started = time.process_time()
    try:
        hash(DEFAULTS.updated(changes))
    except InvalidParamsError as error:
        _check_message(error)
    assert time.process_time() - started < MAX_SECONDS


def _check_row(row: RawRow, columns: ColumnMapping) -> None:
    try:
        record = parse_row(row, columns, DEFAULTS)
    except RequestError as error:
        _check_message(error)
        request_id, carried = identify(row, columns)
        assert isinstance(request_id, str)
        assert not carried or carried.keys() <= (row.data or {}).keys()
    else:
        forms = (record.prompt, record.messages, record.prompt_token_ids)
        assert sum(form is not None for form in forms) == 1
        assert not record.carried.keys() & columns.consumed


def _check_message(error: RequestError) -> None:
    assert 0 < len(str(error)) <= MAX_ERROR_CHARACTERS, len(str(error))


def _check_output(output: Path, answers: Sequence[AnswerRow]) -> None:
    with AnswerWriter(output, manifest=Manifest(model="m"), rows_per_part=3) as writer:
        for answer in reversed(answers):
            writer.write(answer)
        writer.finish({})
    table = pq.read_table(output)
    assert table.column("row_index").to_pylist() == list(range(len(answers)))
