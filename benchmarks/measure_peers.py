"""Measures our engine and its peers in turn, on the same workloads and weights.

python -m benchmarks.measure_peers --workloads mixed --engines furiosa openvino-float32
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from benchmarks.contenders import PEERS, Contender, ours, precisions
from benchmarks.results import WorkloadResult
from benchmarks.rounds import Setup, measure_workload
from benchmarks.sessions import add_options, run_session
from furiosa_llm.modeling.cpu import processor


@dataclass(frozen=True, slots=True, kw_only=True)
class Comparison:
    """A workload, and who runs it.

    Attributes:
        shape: The model's.
        workload: Its name.
        num_rows: Only the first rows; None for all.
        engines: Keys of the contenders.
    """

    shape: str
    workload: str
    num_rows: int | None = None
    engines: tuple[str, ...]


_OURS = ("furiosa-float32", "furiosa-int8")
_OPENVINO = ("openvino-float32", "openvino-bfloat16", "openvino-int8")
_LLAMA_CPP = ("llama-cpp-float32", "llama-cpp-int8")
# Those that are far behind run where they show something.
COMPARISONS = (
    Comparison(
        shape="llama-135m",
        workload="mixed",
        engines=(*_OURS, *_OPENVINO, *_LLAMA_CPP, "vllm-float32", "transformers-float32"),
    ),
    Comparison(
        shape="llama-135m",
        workload="shared-prefix",
        engines=(*_OURS, *_OPENVINO, *_LLAMA_CPP, "vllm-float32"),
    ),
    Comparison(shape="llama-135m", workload="long-prompts", engines=(*_OURS, *_OPENVINO)),
    Comparison(shape="llama-135m", workload="classification", engines=(*_OURS, *_OPENVINO)),
    Comparison(shape="llama-360m", workload="mixed", num_rows=32, engines=(*_OURS, *_OPENVINO)),
)


def contenders() -> dict[str, Contender]:
    """Returns everyone who can be measured on this machine, by key."""
    own = [ours(precision) for precision in precisions()]
    peers = [peer for peer in PEERS if processor.has(*peer.features)]
    return {contender.key: contender for contender in (*own, *peers)}


def choose(
    keys: Sequence[str], wanted: Sequence[str] | None, known: dict[str, Contender]
) -> list[Contender]:
    """Returns the contenders of a comparison whose keys begin with one of the wanted words."""
    return [
        known[key] for key in keys if key in known and (not wanted or key.startswith(tuple(wanted)))
    ]


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--workloads", nargs="+", choices=sorted({entry.workload for entry in COMPARISONS})
    )
    parser.add_argument("--shapes", nargs="+", choices=sorted({e.shape for e in COMPARISONS}))
    parser.add_argument(
        "--engines",
        nargs="+",
        metavar="KEY",
        help=f"of {', '.join(contenders())}, or how they begin",
    )
    add_options(parser)
    args = parser.parse_args()

    def measurements(setup: Setup) -> Iterator[WorkloadResult]:
        known = contenders()
        for entry in COMPARISONS:
            is_wanted = not args.workloads or entry.workload in args.workloads
            if is_wanted and (not args.shapes or entry.shape in args.shapes):
                yield measure_workload(
                    setup,
                    choose(entry.engines, args.engines, known),
                    shape=entry.shape,
                    workload=entry.workload,
                    num_rows=entry.num_rows,
                )

    run_session("peers", args, measurements)


if __name__ == "__main__":
    main()
