from __future__ import annotations

import pytest

from tests.cli.cli_factories import FakeBatch


@pytest.fixture
def batch(monkeypatch: pytest.MonkeyPatch) -> FakeBatch:
    """What `run` calls in place of a real batch."""
    fake = FakeBatch()
    monkeypatch.setattr("furiosa_llm.batch.run.run_batch_job", fake)
    return fake
