"""JSON to Python values and back, with the same values whether orjson is installed or not."""

from __future__ import annotations

import base64
import datetime
import json
import math

import pyarrow as pa

from furiosa_llm.dataset.arrow_values import scalar_text
from furiosa_llm.row_limits import MAX_DEPTH

try:
    import orjson
except ModuleNotFoundError:  # faster by far, but not on every machine that has pyarrow
    orjson = None  # type: ignore[assignment]

_DIGITS_TO_ZERO = bytes.maketrans(b"123456789", b"000000000")
_LONG_NUMBERS = (b"0" * 20, b"-" + b"0" * 19)  # the first that may need more than 64 bits


def parse_json(data: bytes) -> object:
    """Reads one JSON value; of duplicate keys the last one wins.

    Raises:
        ValueError: It is not JSON, not UTF-8, holds NaN or infinity, or is nested too deeply.
    """
    if orjson is None:
        value = _parse_exactly(data)
    else:
        value = orjson.loads(data)
        # orjson makes floats of numbers that need more than 64 bits; ids must not change.
        digits = data.translate(_DIGITS_TO_ZERO)
        if any(number in digits for number in _LONG_NUMBERS):
            value = _parse_exactly(data)
    if data.count(b"[") + data.count(b"{") > MAX_DEPTH and _is_deeper(value, MAX_DEPTH):
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep")
    return value


def to_json(value: object) -> str:
    """Writes a value as compact JSON; what JSON does not know becomes text."""
    if orjson is not None:
        try:
            return orjson.dumps(
                value, default=_as_text, option=orjson.OPT_PASSTHROUGH_DATETIME
            ).decode()
        except TypeError:  # more than 64 bits, or nested deeper than orjson goes
            pass
    try:
        return _dumps(value)
    except ValueError:
        return _dumps(_without_nan(value))


def _parse_exactly(data: bytes) -> object:
    try:
        value: object = json.loads(data.decode(), parse_constant=_refuse, parse_float=_finite)
    except RecursionError as error:
        raise ValueError(f"nested more than {MAX_DEPTH} levels deep") from error
    if b"\\u" in data:
        # Half of a surrogate pair parses, but is no text that could be written again.
        json.dumps(value, ensure_ascii=False).encode()
    return value


def _refuse(constant: str) -> object:
    raise ValueError(f"{constant} is not a JSON number")


def _finite(text: str) -> float:
    number = float(text)
    if math.isinf(number):
        raise ValueError(f"the number {text[:40]} is out of range")
    return number


def _is_deeper(value: object, limit: int) -> bool:
    """Whether lists and objects are nested more than `limit` levels deep."""
    level: list[object] = [value]
    for _ in range(limit):
        inner: list[object] = []
        for item in level:
            if isinstance(item, dict):
                inner.extend(item.values())
            elif isinstance(item, list):
                inner.extend(item)
        level = [item for item in inner if isinstance(item, dict | list)]
        if not level:
            return False
    return True


def _dumps(value: object) -> str:
    return json.dumps(
        value, default=_as_text, ensure_ascii=False, separators=(",", ":"), allow_nan=False
    )


def _without_nan(value: object) -> object:
    """Puts null where JSON has no number, as orjson does."""
    if isinstance(value, dict):
        return {name: _without_nan(item) for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [_without_nan(item) for item in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def _as_text(value: object) -> object:
    if isinstance(value, bytes | bytearray | memoryview):
        return base64.b64encode(value).decode()
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    return scalar_text(value) if isinstance(value, pa.Scalar) else str(value)
