from __future__ import annotations

import gzip
import os
import threading
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from furiosa_llm.dataset.manifest import InputFile, describe_inputs
from furiosa_llm.dataset.reader import open_input
from furiosa_llm.dataset.row_estimate import estimate_num_rows

LINE = b'{"prompt": "How many rows are there in a file of so many bytes?"}\n'


def test_parquet_knows_its_rows(tmp_path: Path) -> None:
    path = tmp_path / "in.parquet"
    pq.write_table(pa.table({"prompt": ["a"] * 7}), path)

    assert estimate_num_rows(open_input(str(path))) == 7


@pytest.mark.parametrize("num_rows", [0, 1, 100, 20_000])
def test_lines_of_one_length_are_guessed_rightly(tmp_path: Path, num_rows: int) -> None:
    path = tmp_path / "in.jsonl"
    path.write_bytes(LINE * num_rows)

    estimate = estimate_num_rows(open_input(str(path)))

    assert estimate == pytest.approx(num_rows, rel=0.01)


def test_packed_lines_are_guessed_from_the_size(tmp_path: Path) -> None:
    path = tmp_path / "in.jsonl.gz"
    with gzip.open(path, "wb") as file:
        file.write(LINE * 1000)

    assert estimate_num_rows(open_input(str(path))) == path.stat().st_size * 4 // 256


def test_nobody_knows_what_comes_through_a_pipe() -> None:
    assert estimate_num_rows(open_input("-")) is None


@pytest.mark.parametrize("num_rows", [3, 5000])
@pytest.mark.parametrize("suffix", ["", ".gz", ".zst"])
def test_a_pipe_keeps_all_its_rows(tmp_path: Path, num_rows: int, suffix: str) -> None:
    path = tmp_path / f"in.jsonl{suffix}"
    os.mkfifo(path)
    packed = pa.BufferOutputStream()
    packing = {".gz": "gzip", ".zst": "zstd"}.get(suffix)
    with pa.output_stream(packed, compression=packing) as stream:
        stream.write(LINE * num_rows)
    content = packed.getvalue().to_pybytes()
    writer = threading.Thread(target=path.write_bytes, args=(content,), daemon=True)
    writer.start()
    source = open_input(str(path))

    assert estimate_num_rows(source) is None
    assert source.count_rows() is None
    assert describe_inputs(source) == (InputFile(path=str(path)),)
    assert sum(row.data is not None for row in source.rows()) == num_rows
    writer.join(timeout=10)
    assert not writer.is_alive()
