"""Draws what the page of the benchmarks says, as docs/benchmarks.svg.

python -m benchmarks.plot
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

import matplotlib as mpl
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from benchmarks.figures import spread
from benchmarks.results import FOLDER, Run, Session, WorkloadResult, newest_results, read_sessions

PLOT = Path(__file__).parents[1] / "docs" / "benchmarks.svg"
_OURS, _OTHERS = "#d1495b", "#8d99ae"
_BAR_INCHES, _MARGIN_INCHES, _WIDTH_INCHES = 0.28, 0.75, 8.0


def draw(sessions: Sequence[Session], path: Path) -> None:
    """Draws the seconds of every engine, a panel for each workload of the comparison.

    Args:
        sessions: The measurements.
        path: The file; its suffix says of which kind.
    """
    results = [
        (session.processor, result)
        for session, result in newest_results(sessions)
        if session.kind == "peers" and _measured(result)
    ]
    if not results:
        raise SystemExit("there is nothing to draw: no comparison has been measured")
    heights = [_MARGIN_INCHES + _BAR_INCHES * len(_measured(result)) for _, result in results]
    # Without these the same figures would give another file each time.
    with mpl.rc_context({"svg.hashsalt": "benchmarks", "svg.fonttype": "path", "font.size": 9}):
        figure = Figure(figsize=(_WIDTH_INCHES, sum(heights)), layout="constrained")
        panels = figure.subplots(len(results), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, (processor, result) in zip(panels, results, strict=True):
            _draw_workload(axes, result)
            title = f"{result.model}: {result.workload}, on {processor}"
            axes.set_title(title, loc="left", fontweight="bold")
        is_svg = path.suffix == ".svg"
        figure.savefig(path, metadata={"Date": None} if is_svg else None, facecolor="white")


def _draw_workload(axes: Axes, result: WorkloadResult) -> None:
    runs = _measured(result)[::-1]  # the first one comes on top
    spreads = [spread(run.seconds) for run in runs]
    axes.barh(
        [run.label for run in runs],
        [entry.median for entry in spreads],
        color=[_OURS if run.is_ours else _OTHERS for run in runs],
    )
    for run, entry in zip(runs, spreads, strict=True):
        if entry.highest > entry.lowest:
            axes.plot([entry.lowest, entry.highest], [run.label] * 2, color="black", linewidth=1)
        axes.annotate(
            f"{entry.median:.1f} s",
            (entry.highest, run.label),  # behind the range, so that it crosses no figure
            xytext=(8, 0),
            textcoords="offset points",
            va="center",
        )
    axes.margins(x=0.15)
    axes.set_xlim(left=0)
    axes.spines[["top", "right"]].set_visible(False)


def _measured(result: WorkloadResult) -> list[Run]:
    return [run for run in result.runs if run.seconds]


def main() -> None:
    """Draws the plot."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=FOLDER)
    parser.add_argument("--output", type=Path, default=PLOT, help="an SVG or PNG file")
    args = parser.parse_args()
    draw(read_sessions(args.results), args.output)


if __name__ == "__main__":
    main()
