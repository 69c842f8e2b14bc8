from __future__ import annotations

import pytest
import torch

from benchmarks.gpu_trace import idle_share, traced_spans


@pytest.mark.parametrize(
    ("spans", "share"),
    [
        ([(0.0, 10.0)], 0.0),
        ([(0.0, 4.0), (6.0, 10.0)], 0.2),
        ([(6.0, 10.0), (0.0, 4.0), (1.0, 2.0), (3.0, 5.0)], 0.1),
        ([(0.0, 10.0), (2.0, 3.0)], 0.0),
    ],
)
def test_time_in_which_nothing_runs_is_idle(spans: list[tuple[float, float]], share: float) -> None:
    assert idle_share(spans) == pytest.approx(share)


def test_nothing_is_said_of_a_trace_of_nothing() -> None:
    assert idle_share([]) is None


def test_what_runs_is_traced() -> None:
    matrix = torch.ones(64, 64)

    spans = traced_spans(lambda: matrix @ matrix, torch.device("cpu"))

    assert spans
    assert all(begin <= end for begin, end in spans)
