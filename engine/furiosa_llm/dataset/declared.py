"""Types that an input declares for its columns, and how they go through to the output."""

from __future__ import annotations

import pyarrow as pa
import pyarrow.types as pt

_PLAIN = (
    pt.is_boolean,
    pt.is_integer,
    pt.is_float16,
    pt.is_float32,
    pt.is_float64,
    pt.is_string,
    pt.is_large_string,
    pt.is_binary,
    pt.is_large_binary,
    pt.is_fixed_size_binary,
    pt.is_decimal,
    pt.is_date32,
    pt.is_time,
    pt.is_timestamp,
    pt.is_duration,
)


def declared_types(schema: pa.Schema | None) -> dict[str, pa.DataType]:
    """Returns the types that the output can keep; other columns count as not declared."""
    if schema is None:
        return {}
    kept = {field.name: stored_type(field.type) for field in schema}
    return {name: kind for name, kind in kept.items() if kind is not None}


def stored_type(kind: pa.DataType) -> pa.DataType | None:
    """Returns the type in which values of `kind` are kept until the end; None if they cannot be.

    A dictionary is built anew at the end: parts with dictionaries of their own do not concatenate.
    """
    if pt.is_dictionary(kind):
        return stored_type(kind.value_type)
    if pt.is_map(kind):
        key, item = stored_type(kind.key_type), stored_type(kind.item_type)
        return None if key is None or item is None else pa.map_(key, item)
    if pt.is_struct(kind):
        fields = [(field.name, stored_type(field.type)) for field in kind]
        return pa.struct(fields) if fields and all(item for _, item in fields) else None
    if pt.is_list(kind) or pt.is_large_list(kind) or pt.is_fixed_size_list(kind):
        return _stored_list(kind)
    return kind if any(test(kind) for test in _PLAIN) else None


def is_dictionary(kind: pa.DataType) -> bool:
    """Whether the values are given as places in a dictionary of few values."""
    return bool(pt.is_dictionary(kind))


def _stored_list(kind: pa.DataType) -> pa.DataType | None:
    item = stored_type(kind.value_type)
    if item is None:
        return None
    if pt.is_large_list(kind):
        return pa.large_list(item)
    if pt.is_fixed_size_list(kind):
        return pa.list_(item, kind.list_size)
    return pa.list_(item)
