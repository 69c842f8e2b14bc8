"""JSONL from a file, plain or compressed, or from standard input, in bounded memory."""

from __future__ import annotations

import contextlib
import gzip
import io
import sys
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, cast

import pyarrow as pa

from furiosa_llm.dataset.json_text import parse_json
from furiosa_llm.dataset.prompts import shortened
from furiosa_llm.dataset.record import RawRow
from furiosa_llm.errors import DatasetError
from furiosa_llm.row_limits import MAX_COLUMNS, MAX_LINE_BYTES

JSONL_SUFFIXES = (".jsonl", ".ndjson", ".json-lines")
GZIP_SUFFIX = ".gz"
ZSTD_SUFFIX = ".zst"

_BOM = b"\xef\xbb\xbf"
_BUFFER_BYTES = 1 << 20
_SKIPPED_AT_ONCE = 1 << 20


@dataclass(frozen=True, slots=True, kw_only=True)
class JsonlFile:
    """A file of JSON objects, one a line; `path` None is standard input.

    Blank lines are no rows. A line that cannot be read is a row with an error.
    """

    path: Path | None
    max_line_bytes: int = MAX_LINE_BYTES

    @property
    def num_rows(self) -> int | None:
        """Not known before the file is read."""
        return None

    @property
    def schema(self) -> pa.Schema | None:
        """JSON has none."""
        return None

    def rows(self, first_row_index: int) -> Iterator[RawRow]:
        """Yields one row for each line that is not blank.

        Raises:
            DatasetError: The file cannot be read or is not compressed as its name says.
        """
        row_index = first_row_index
        for number, line in self._lines():
            place = f"{self.path or '<stdin>'}:{number}"
            if line is None:
                problem = f"{place}: the line is longer than {self.max_line_bytes} bytes"
                yield RawRow(row_index, None, problem)
            else:
                yield _parsed(line, row_index, place)
            row_index += 1

    def count_rows(self) -> int | None:
        """Counts the rows without parsing them; None where that would take reading twice."""
        if self.path is None or _compression(self.path) is not None or not self.path.is_file():
            return None
        num_rows = 0
        has_content = False  # of the line that the last piece left open
        with _reading(self.path), _opened(self.path) as stream:
            while chunk := stream.read(_BUFFER_BYTES):
                is_first = stream.tell() == len(chunk)
                pieces = (chunk.removeprefix(_BOM) if is_first else chunk).split(b"\n")
                filled = [bool(piece) and not piece.isspace() for piece in pieces]
                filled[0] = filled[0] or has_content
                has_content = filled.pop()
                num_rows += sum(filled)
        return num_rows + has_content

    def _lines(self) -> Iterator[tuple[int, bytes | None]]:
        """Yields line numbers with lines that are not blank, None for one that is too long."""
        with _reading(self.path), _opened(self.path) as stream:
            number = 0
            # Room for a line of the limit with its end and a byte order mark.
            while line := stream.readline(self.max_line_bytes + 1 + len(_BOM)):
                number += 1
                content = line.removeprefix(_BOM) if number == 1 else line
                is_blank = not content or content.isspace()
                is_long = len(content) - content.endswith(b"\n") > self.max_line_bytes
                if is_long and not line.endswith(b"\n") and _skip_line(stream):
                    is_blank = False
                if not is_blank:
                    yield number, None if is_long else content


def check_compression(path: Path) -> None:
    """Checks that a file starts as its suffix says, before the run begins.

    Raises:
        DatasetError: It does not, or cannot be read.
    """
    magic = {"gzip": b"\x1f\x8b", "zstd": b"\x28\xb5\x2f\xfd"}.get(_compression(path) or "")
    if magic is None or not path.is_file():
        return
    with _reading(path), path.open("rb") as file:
        start = file.read(len(magic))
    if start != magic:
        raise DatasetError(
            f"{path}: not a {_compression(path)} file, although its name ends in {path.suffix}; "
            "rename it or compress it"
        )


def _parsed(line: bytes, row_index: int, place: str) -> RawRow:
    try:
        value = parse_json(line)
    except ValueError as error:
        return RawRow(row_index, None, f"{place}: {_problem(line, error)}")
    if not isinstance(value, dict):
        return RawRow(
            row_index, None, f"{place}: a row must be a JSON object, got {shortened(value)}"
        )
    if len(value) > MAX_COLUMNS:
        problem = f"{place}: the row has {len(value)} columns, and at most {MAX_COLUMNS} are read"
        return RawRow(row_index, None, problem)
    return RawRow(row_index, value, num_bytes=len(line))


def _problem(line: bytes, error: ValueError) -> str:
    try:
        line.decode()
    except UnicodeDecodeError as decode_error:
        return f"not valid UTF-8 at byte {decode_error.start} of the line"
    return f"not valid JSON: {error}"


def _skip_line(stream: BinaryIO) -> bool:
    """Reads up to the end of the line. Whether there was more than white space."""
    has_content = False
    while piece := stream.readline(_SKIPPED_AT_ONCE):
        has_content = has_content or not piece.isspace()
        if piece.endswith(b"\n"):
            break
    return has_content


@contextlib.contextmanager
def _opened(path: Path | None) -> Iterator[BinaryIO]:
    if path is None:
        if sys.stdin is None:  # a process may be started without one
            raise DatasetError("there is no standard input; give a file instead of -")
        yield sys.stdin.buffer
        return
    compression = _compression(path)
    with contextlib.ExitStack() as stack:
        if compression == "gzip":
            file = stack.enter_context(gzip.open(path, "rb"))
            yield stack.enter_context(io.BufferedReader(cast("io.RawIOBase", file), _BUFFER_BYTES))
        elif compression == "zstd":
            packed = stack.enter_context(path.open("rb"))  # Arrow's own files cannot be pipes
            stream = stack.enter_context(pa.CompressedInputStream(packed, "zstd"))
            yield stack.enter_context(io.BufferedReader(stream, _BUFFER_BYTES))
        else:
            yield stack.enter_context(path.open("rb", buffering=_BUFFER_BYTES))


@contextlib.contextmanager
def _reading(path: Path | None) -> Iterator[None]:
    try:
        yield
    except (EOFError, zlib.error, OSError) as error:
        reason = getattr(error, "strerror", None)  # what the operating system says
        problem = f"cannot be read: {reason}" if reason else f"damaged or cut off: {error}"
        raise DatasetError(f"{path or '<stdin>'}: {problem}") from error


def _compression(path: Path) -> str | None:
    return {GZIP_SUFFIX: "gzip", ZSTD_SUFFIX: "zstd"}.get(path.suffix.lower())
