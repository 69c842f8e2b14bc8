"""Rows made to hurt: each is an error row at once, and its neighbours are answered."""

from __future__ import annotations

import json
import random
import time
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

from furiosa_llm.batch.job import BatchJob
from furiosa_llm.batch.run import run_batch_job
from furiosa_llm.config import EngineArgs
from furiosa_llm.row_limits import MAX_COLUMNS, MAX_LINE_BYTES
from furiosa_llm.sampling_params import SamplingParams
from tests.fuzz.checks import CORPUS
from tests.fuzz.mutations import mutated

TINY = str(Path(__file__).parents[2] / "samples" / "tiny-llama")
GOOD = b'{"prompt": "What is 2 + 3?"}'


def line(**values: object) -> bytes:
    return json.dumps({"prompt": "a", **values}).encode()


def number(name: str, digits: int) -> bytes:
    return b'{"prompt": "a", "%s": %s}' % (name.encode(), b"9" * digits)


HOSTILE: dict[str, tuple[bytes, str | None]] = {
    "an infinite number": (b'{"prompt": "a", "temperature": 1e400}', "invalid_row"),
    "a number of 5000 digits": (number("max_tokens", 5000), "invalid_row"),
    "a carried number of 5000 digits": (number("x", 5000), "invalid_row"),
    "a number of 30 digits": (number("max_tokens", 30), "invalid_params"),
    "100,000 brackets": (
        b'{"prompt": "a", "x": ' + b"[" * 100_000 + b"]" * 100_000 + b"}",
        "invalid_row",
    ),
    "100,000 open brackets": (b"[" * 100_000, "invalid_row"),
    "a line of 100 MB": (b'{"prompt": "' + b"a" * 100_000_000 + b'"}', "invalid_row"),
    "a prompt of 5 MB": (line(prompt="word " * 1_000_000), "prompt_too_long"),
    "a chat of 5 MB": (
        json.dumps({"messages": [{"role": "user", "content": "a" * 5_000_000}]}).encode(),
        "prompt_too_long",
    ),
    "a million tokens": (
        json.dumps({"prompt_token_ids": [5] * 1_000_000}).encode(),
        "prompt_too_long",
    ),
    "a NUL byte": (b'{"prompt": "a\0"}', "invalid_row"),
    "no UTF-8": (b'{"prompt": "\xff"}', "invalid_row"),
    "half of a surrogate pair": (b'{"prompt": "\\ud800"}', "invalid_row"),
    "too many columns": (
        line(**{f"c{index}": 1 for index in range(MAX_COLUMNS)}),
        "invalid_row",
    ),
    "100,000 stop strings": (line(stop=[f"s{i}" for i in range(100_000)]), "invalid_params"),
    "a stop string of 10 MB": (line(stop="s" * 10_000_000), "invalid_params"),
    "100,000 biases": (
        line(logit_bias={str(i): 1 for i in range(100_000)}),
        "invalid_params",
    ),
    "a billion answers": (line(n=10**9), "invalid_params"),
    "more tokens at least than at most": (line(min_tokens=9, max_tokens=3), "invalid_params"),
    "an unknown name of 5 MB": (line(sampling_params={"x" * 5_000_000: 1}), "invalid_params"),
    "a schema of 10 MB": (
        line(structured_outputs={"json": {"enum": ["x" * 100] * 100_000}}),
        "invalid_params",
    ),
    "an explosive pattern": (
        line(structured_outputs={"regex": "((a{0,99}){0,99}){0,99}$"}),
        None,  # it compiles to little, and is answered
    ),
}
ODD_NAMES = ("../../x", "a/b", "", "line\nbreak", "nul\0", "text", "row_index", "C:\\x", "x" * 9000)


def run(folder: Path, content: bytes, **params: Any) -> list[dict[str, Any]]:
    (folder / "rows.jsonl").write_bytes(content)
    job = BatchJob(
        engine_args=EngineArgs(model=TINY, devices="cpu", data_parallel_size=1),
        sampling_params=SamplingParams(**{"temperature": 0, "max_tokens": 8} | params),
        input=str(folder / "rows.jsonl"),
        output=folder / "out.parquet",
        overwrite=True,
    )
    run_batch_job(job)
    rows: list[dict[str, Any]] = pq.read_table(job.output).to_pylist()
    return rows


def test_each_hostile_row_is_an_error_row_and_its_neighbours_are_answered(tmp_path: Path) -> None:
    lines = [part for content, _ in HOSTILE.values() for part in (GOOD, content)]
    started = time.process_time()

    rows = run(tmp_path, b"\n".join([*lines, GOOD]))

    # All of them together: some 15 s of a processor were spent on one of them alone.
    assert time.process_time() - started < 15
    codes = dict(zip(HOSTILE, (row["error_code"] for row in rows[1::2]), strict=True))
    assert codes == {name: code for name, (_, code) in HOSTILE.items()}
    assert {row["text"] for row in rows[::2]} == {"5"}
    assert max(len(row["error"] or "") for row in rows[1::2]) <= 1000
    assert MAX_LINE_BYTES < 100_000_000


def test_odd_names_of_columns_are_names_and_nothing_more(tmp_path: Path) -> None:
    before = sorted(tmp_path.parent.iterdir())

    (row,) = run(tmp_path, line(**{name: index for index, name in enumerate(ODD_NAMES)}))

    names = {"text": "input_text", "row_index": "input_row_index"}
    assert {name: row[names.get(name, name)] for name in ODD_NAMES} == {
        name: index for index, name in enumerate(ODD_NAMES)
    }
    assert sorted(tmp_path.parent.iterdir()) == before
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.parquet", "rows.jsonl"]


def test_rows_that_each_bring_columns_of_their_own_do_not_make_an_endless_table(
    tmp_path: Path,
) -> None:
    num_rows, num_columns = 30, 100
    content = b"\n".join(
        line(**{f"c{index}-{column}": index for column in range(num_columns)})
        for index in range(num_rows)
    )

    rows = run(tmp_path, content, max_tokens=1)

    own = [name for name in rows[0] if name.startswith("c") and "-" in name]
    assert len(own) == MAX_COLUMNS
    others = [row["furiosa_llm.other_columns"] for row in rows]
    assert [other is None for other in others] == [index < 10 for index in range(num_rows)]
    assert json.loads(others[-1]) == {f"c29-{column}": 29 for column in range(num_columns)}


def test_a_whole_run_over_broken_files_has_a_row_for_each_row(tmp_path: Path) -> None:
    corpus = [path.read_bytes() for path in sorted(CORPUS.iterdir())]
    draws = random.Random(7)
    broken = [mutated(content, corpus, draws) for content in corpus]
    content = b"\n".join([*corpus, *broken, GOOD])
    num_lines = sum(
        bool(part.strip()) for part in content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    )

    rows = run(tmp_path, content)

    assert [row["row_index"] for row in rows] == list(range(num_lines))
    assert rows[-1]["text"] == "5"
