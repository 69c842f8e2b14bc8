"""The types on which the Parquet files of an input agree."""

from __future__ import annotations

from collections.abc import Sequence

import pyarrow as pa
import pyarrow.types as pt

from furiosa_llm.dataset.arrow_values import python_value
from furiosa_llm.dataset.parquet_input import ParquetInput

_EXACT = 2**53  # as a float64
_INT64 = 2**63
_PER_SECOND = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}

_Place = tuple[ParquetInput, pa.Field]


def common_schema(files: Sequence[ParquetInput]) -> pa.Schema:
    """Returns the columns whose types agree, or fit into one type without loss.

    A column for which there is no such type is left out.
    """
    places: dict[str, list[_Place]] = {}
    for file in files:
        for field in file.schema:
            places.setdefault(field.name, []).append((file, field))
    fields = [_common_field(name, found) for name, found in places.items()]
    return pa.schema([field for field in fields if field is not None])


def _common_field(name: str, places: Sequence[_Place]) -> pa.Field | None:
    kind: pa.DataType | None = places[0][1].type
    for _, field in places[1:]:
        kind = kind and _wider(kind, field.type)
    if kind is None:
        return None
    same = [field for _, field in places if field.type.equals(kind)]
    if all(_fits(file, field, kind) for file, field in places):
        return same[0] if same else pa.field(name, kind)
    return None


def _wider(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    """Returns a type for the values of both; whether it holds them all may depend on them."""
    if first.equals(second) or pt.is_null(second):
        return first
    if pt.is_null(first):
        return second
    first, second = _values_of(first), _values_of(second)
    both = (first, second)
    if first.equals(second):
        return first
    if all(map(pt.is_integer, both)):
        return _wider_integer(first, second)
    if all(map(pt.is_floating, both)):
        return max(both, key=lambda kind: kind.bit_width)
    if all(pt.is_integer(kind) or pt.is_floating(kind) for kind in both):
        return pa.float64()
    if all(pt.is_string(kind) or pt.is_large_string(kind) for kind in both):
        return pa.large_string()
    if all(pt.is_binary(kind) or pt.is_large_binary(kind) for kind in both):
        return pa.large_binary()
    if all(map(pt.is_timestamp, both)) and first.tz == second.tz:
        return max(both, key=lambda kind: _PER_SECOND[kind.unit])
    return None


def _values_of(kind: pa.DataType) -> pa.DataType:
    return kind.value_type if pt.is_dictionary(kind) else kind


def _wider_integer(first: pa.DataType, second: pa.DataType) -> pa.DataType | None:
    if pt.is_signed_integer(first) == pt.is_signed_integer(second):
        return max(first, second, key=lambda kind: kind.bit_width)
    signed, unsigned = (first, second) if pt.is_signed_integer(first) else (second, first)
    width = max(signed.bit_width, 2 * unsigned.bit_width)
    return {16: pa.int16(), 32: pa.int32(), 64: pa.int64()}.get(width)


def _fits(file: ParquetInput, field: pa.Field, kind: pa.DataType) -> bool:
    """Whether the values of a file's column are the same in a wider type."""
    own = field.type
    if pt.is_timestamp(own) and own != kind:
        if isinstance(python_value(pa.scalar(0, own)), pa.Scalar):
            return False  # of an unknown time zone: only Arrow has its values, and as they are
        stored = "ms" if own.unit == "s" else own.unit  # Parquet has no whole seconds
        limit = _INT64 * _PER_SECOND[stored] // _PER_SECOND[kind.unit] - 1
        return file.is_within(field.name, -limit, limit)
    own = _values_of(own)
    if pt.is_integer(own) and own.bit_width == 64 and pt.is_floating(kind):
        return file.is_within(field.name, -_EXACT if pt.is_signed_integer(own) else 0, _EXACT)
    return True
