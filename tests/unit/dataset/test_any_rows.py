"""Any bytes at all: one row comes out for each that goes in, and nothing else happens."""

from __future__ import annotations

import random
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from furiosa_llm.sampling_params import PARAMETER_NAMES
from tests.fuzz.checks import CORPUS, check_params, check_rows, check_written
from tests.fuzz.mutations import PIECES, VALUES, mutated

FILES = sorted(CORPUS.iterdir())
CONTENTS = [path.read_bytes() for path in FILES]

MUTATED = st.builds(
    lambda content, seed: mutated(content, CONTENTS, random.Random(seed)),
    st.sampled_from(CONTENTS),
    st.integers(0, 2**64),
)
ROWS = st.one_of(
    st.binary(max_size=300),
    st.lists(st.sampled_from(PIECES), max_size=12).map(b"".join),
    MUTATED,
)
NESTED = st.recursive(
    st.sampled_from(VALUES),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=3), inner),
    max_leaves=5,
)
PARAMS = st.dictionaries(st.sampled_from(sorted(PARAMETER_NAMES)) | st.text(), NESTED, max_size=4)

few = settings(max_examples=300)
many = settings(max_examples=10_000, suppress_health_check=list(HealthCheck))


@pytest.mark.parametrize("path", FILES, ids=[path.stem for path in FILES])
def test_the_corpus_is_read_and_written(path: Path) -> None:
    assert check_rows(path.read_bytes()) > 0
    check_written(path.read_bytes())


@few
@given(ROWS)
def test_any_bytes_are_rows(content: bytes) -> None:
    check_rows(content)


@few
@given(PARAMS)
def test_any_parameters_are_taken_or_refused(changes: dict[str, object]) -> None:
    check_params(changes)


@settings(max_examples=20)
@given(MUTATED)
def test_any_rows_are_written(content: bytes) -> None:
    check_written(content)


@pytest.mark.slow
@many
@given(ROWS)
def test_ten_thousand_inputs_are_rows(content: bytes) -> None:
    check_rows(content)


@pytest.mark.slow
@many
@given(PARAMS)
def test_ten_thousand_sets_of_parameters_are_taken_or_refused(changes: dict[str, object]) -> None:
    check_params(changes)
