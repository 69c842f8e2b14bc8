from __future__ import annotations

import gzip
import io
import sys
import tempfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from furiosa_llm.dataset import jsonl
from furiosa_llm.dataset.reader import open_input
from furiosa_llm.dataset.record import RawRow
from furiosa_llm.errors import DatasetError
from tests.unit.dataset.dataset_factories import rows_of

zstandard = pytest.importorskip("zstandard")

TWO_ROWS = b'{"prompt": "a"}\n{"prompt": "b"}\n'


def packed(content: bytes, suffix: str) -> bytes:
    return gzip.compress(content) if suffix == ".gz" else zstandard.compress(content)


def test_a_line_is_a_row(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "p.jsonl", TWO_ROWS)

    assert [(row.row_index, row.data, row.error) for row in rows] == [
        (0, {"prompt": "a"}, None),
        (1, {"prompt": "b"}, None),
    ]


def test_byte_order_mark_line_ends_and_blank_lines_do_not_matter(tmp_path: Path) -> None:
    content = b'\xef\xbb\xbf{"prompt": "a"}\r\n\r\n \t\n{"prompt": "b"}'

    rows = rows_of(tmp_path / "p.ndjson", content)

    assert [row.data for row in rows] == [{"prompt": "a"}, {"prompt": "b"}]


@pytest.mark.parametrize(
    ("line", "problem"),
    [
        (b'{"a": ', "not valid JSON: "),
        (b'{"a": "\xff"}', "not valid UTF-8 at byte 7 of the line"),
        (b"[1]", r"a row must be a JSON object, got [1] (list)"),
        (b"null", "a row must be a JSON object, got None (NoneType)"),
        (b'{"a": NaN}', "not valid JSON: "),
        (b'{"a": 1e999}', "not valid JSON: "),
        (b'{"a": "\\ud800"}', "not valid JSON: "),
        (b'{"a": ' + b"[" * 150 + b"]" * 150 + b"}", "nested more than 100 levels deep"),
        (b"[" * 900 + b"]" * 900, "nested more than 100 levels deep"),
        (b"\xef\xbb\xbf{}", "not valid JSON: "),
        (b"x" * 2001, "the line is longer than 2000 bytes"),
        (b'{"a": "' + b"x" * 5000 + b'"}', "the line is longer than 2000 bytes"),
    ],
)
def test_a_line_that_cannot_be_read_is_a_row_with_an_error(
    tmp_path: Path, line: bytes, problem: str
) -> None:
    path = tmp_path / "p.jsonl"

    rows = rows_of(path, TWO_ROWS + b"\n" + line + b"\n" + TWO_ROWS, max_line_bytes=2000)

    assert [row.row_index for row in rows] == [0, 1, 2, 3, 4]
    assert [row.data is None for row in rows] == [False, False, True, False, False]
    assert str(rows[2].error).startswith(f"{path}:4: ")
    assert problem in str(rows[2].error)


@pytest.mark.parametrize("start", [b"", b"\xef\xbb\xbf"])
def test_a_line_of_just_the_limit_is_read(tmp_path: Path, start: bytes) -> None:
    line = b'{"a": "' + b"x" * 991 + b'"}'

    rows = rows_of(tmp_path / "p.jsonl", start + line + b"\n" + line + b"\n{")

    assert [row.error for row in rows[:2]] == [None, None]
    assert str(rows[2].error).startswith(f"{tmp_path}/p.jsonl:3: ")


def test_a_long_line_that_begins_with_blanks_is_a_row(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "p.jsonl", b" " * 1200 + b'{"prompt": "a"}\n{"prompt": "b"}\n')

    assert [(row.row_index, row.data) for row in rows] == [(0, None), (1, {"prompt": "b"})]


def test_of_duplicate_keys_the_last_wins(tmp_path: Path) -> None:
    assert rows_of(tmp_path / "p.jsonl", b'{"a": 1, "a": 2}')[0].data == {"a": 2}


def test_long_numbers_stay_exact(tmp_path: Path) -> None:
    rows = rows_of(tmp_path / "p.jsonl", b'{"a": 123456789012345678901234567890, "b": 1.5}')

    assert rows[0].data == {"a": 123456789012345678901234567890, "b": 1.5}


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_compressed_files_are_unpacked_in_all_their_frames(tmp_path: Path, suffix: str) -> None:
    content = packed(TWO_ROWS, suffix) + packed(TWO_ROWS, suffix)

    rows = rows_of(tmp_path / f"p.jsonl{suffix}", content)

    assert [row.row_index for row in rows] == [0, 1, 2, 3]


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
def test_a_compressed_file_that_was_cut_off_ends_the_run(tmp_path: Path, suffix: str) -> None:
    path = tmp_path / f"p.jsonl{suffix}"

    with pytest.raises(DatasetError, match=rf"p\.jsonl\{suffix}: damaged or cut off"):
        rows_of(path, packed(TWO_ROWS, suffix)[:-6])


@pytest.mark.parametrize("suffix", [".gz", ".zst"])
@pytest.mark.parametrize("content", [TWO_ROWS, b""])
def test_a_file_that_is_not_compressed_is_refused_at_once(
    tmp_path: Path, suffix: str, content: bytes
) -> None:
    path = tmp_path / f"p.jsonl{suffix}"
    path.write_bytes(content)

    with pytest.raises(DatasetError, match=f"although its name ends in {suffix}"):
        open_input(str(path))


def test_standard_input_is_read_as_jsonl(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(TWO_ROWS + b"oops")))

    source = open_input("-")
    rows = list(source.rows())

    assert (source.paths, source.num_rows, source.count_rows()) == ((), None, None)
    assert [row.data for row in rows] == [{"prompt": "a"}, {"prompt": "b"}, None]
    assert str(rows[2].error).startswith("<stdin>:3: not valid JSON")


def test_standard_input_may_be_missing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "stdin", None)

    with pytest.raises(DatasetError, match="there is no standard input"):
        list(open_input("-").rows())


def test_only_a_plain_file_is_counted_ahead(tmp_path: Path) -> None:
    plain, compressed = tmp_path / "p.jsonl", tmp_path / "p.jsonl.gz"
    plain.write_bytes(b'\xef\xbb\xbf\n{"a": 1}\n\n  \n\n{"a": 2}')
    compressed.write_bytes(gzip.compress(TWO_ROWS))

    assert open_input(str(plain)).count_rows() == 2
    assert open_input(str(compressed)).count_rows() is None


FRAGMENTS = st.sampled_from(
    [b'{"a": 1}', b"{}", b"\n", b"\r\n", b" ", b"\xef\xbb\xbf", b"[", b'"', b"\xff", b"\0", b"NaN"]
)


@settings(max_examples=250)
@given(
    st.lists(FRAGMENTS | st.binary(max_size=8)).map(b"".join),
    st.integers(1, 20),
    st.integers(3, 12) | st.just(1 << 20),
)
def test_any_bytes_give_one_row_for_each_line_that_is_not_blank(
    content: bytes, max_line_bytes: int, bytes_at_once: int
) -> None:
    lines = content.removeprefix(b"\xef\xbb\xbf").split(b"\n")
    wanted = sum(line.strip() != b"" for line in lines)

    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patched:
        path = Path(folder) / "p.jsonl"
        patched.setattr(jsonl, "_BUFFER_BYTES", bytes_at_once)
        rows = rows_of(path, content, max_line_bytes=max_line_bytes)
        count = open_input(str(path)).count_rows()

    assert [row.row_index for row in rows] == list(range(wanted))
    assert all((row.data is None) != (row.error is None) for row in rows)
    assert count == wanted


@settings(max_examples=100)
@given(
    st.sampled_from([".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet"]),
    st.sampled_from([b"", gzip.compress(TWO_ROWS), zstandard.compress(TWO_ROWS)]),
    st.binary(max_size=40),
    st.integers(0, 60),
)
def test_a_damaged_file_raises_nothing_but_a_dataset_error(
    suffix: str, start: bytes, noise: bytes, cut: int
) -> None:
    content = start[:cut] + noise + start[cut:]

    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / f"p{suffix}"
        outcome = rows_or_error(path, content)

    if isinstance(outcome, DatasetError):
        assert str(outcome).startswith(f"{path}: ")
        assert "\n" not in str(outcome)
    else:
        assert [row.row_index for row in outcome] == list(range(len(outcome)))


def rows_or_error(path: Path, content: bytes) -> list[RawRow] | DatasetError:
    try:
        return rows_of(path, content)
    except DatasetError as error:
        return error
