"""Values of Arrow that Python's own types cannot hold: nanoseconds, years beyond 9999."""

from __future__ import annotations

import pyarrow as pa

_OUT_OF_RANGE = "<"  # with which Arrow begins the text of a time that no calendar has


def python_value(scalar: pa.Scalar) -> object:
    """Returns a value as Python's types; what they lack within it stays Arrow's."""
    if not scalar.is_valid:
        return None
    try:
        value: object = scalar.as_py()
    except UnicodeDecodeError:
        raise
    except (ValueError, OverflowError):
        return _outer_value(scalar)
    return value


def scalar_text(scalar: pa.Scalar) -> str:
    """Writes a value of Arrow as text, whatever it is."""
    if pa.types.is_temporal(scalar.type) and not pa.types.is_duration(scalar.type):
        try:
            text: str = scalar.cast(pa.string()).as_py()
        except (pa.ArrowException, ValueError):
            text = _OUT_OF_RANGE
        if not text.startswith(_OUT_OF_RANGE):
            return text.replace(" ", "T")
    # The bare number, as str() would make a Python value first.
    return f"{getattr(scalar, 'value', '?')} ({scalar.type})"


def value_text(value: object) -> str:
    """Writes a column's value as `str` does, whatever of Arrow is in it."""
    return str(_with_texts(value))


def _with_texts(value: object) -> object:
    if isinstance(value, pa.Scalar):
        return scalar_text(value)
    if isinstance(value, dict):
        return {name: _with_texts(item) for name, item in value.items()}
    if isinstance(value, list):
        return [_with_texts(item) for item in value]
    return tuple(map(_with_texts, value)) if isinstance(value, tuple) else value


def _outer_value(scalar: pa.Scalar) -> object:
    if isinstance(scalar, pa.MapScalar):
        entries = [(entry[0], entry[1]) for entry in scalar.values]
        return [(python_value(key), python_value(item)) for key, item in entries]
    if isinstance(scalar, pa.StructScalar):
        fields = enumerate(scalar.type)
        return {field.name: python_value(scalar[place]) for place, field in fields}
    if isinstance(scalar, pa.ListScalar):  # and its relatives
        return [python_value(item) for item in scalar.values]
    if isinstance(scalar, pa.DictionaryScalar):
        return python_value(scalar.value)
    return scalar
