"""Writes docs/models.md: which architectures of transformers the engine serves, tried one by one.

    python docs/make_models_table.py                 # all of them, into docs/models.md
    python docs/make_models_table.py llama falcon    # some, as lines on standard output

Each architecture is tried in a process of its own with a time limit, so that none can stop the
others.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
from collections import Counter
from collections.abc import Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import redirect_stderr, redirect_stdout
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path

import transformers

from docs.serving_trial import Outcome, Verdict, try_model_type
from docs.tiny_checkpoints import class_name, model_types

TABLE = Path(__file__).parent / "models.md"
_HEADER = """\
# Models

Which decoders of transformers {version} the engine serves, out of the {total} model types that
`AutoModelForCausalLM` knows. `python docs/make_models_table.py` made this table: for each model
type it writes a tiny checkpoint with random weights (the default configuration with every size
shrunk), answers prompts with the engine, cut into chunks and mixed in one batch, and compares the
greedy float32 tokens with those of `transformers.generate`. Where two logits are equal up to the
rounding of float32, either token counts as equal, and the table says so.

{counts}

A model type stands for its default configuration, but for the exceptions in
`docs/tiny_checkpoints.py` (BERTs are made decoders, say, and LFM2 gets its convolutions). Another
configuration, such as Falcon with ALiBi, may be refused, by name and before a run.

| model type | class | outcome | remarks |
|---|---|---|---|
"""


def main() -> None:
    """Tries the architectures that the command line names, or all."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("model_types", nargs="*", metavar="MODEL_TYPE")
    parser.add_argument("--jobs", type=int, default=os.cpu_count() or 1, help="processes at once")
    parser.add_argument("--seconds", type=float, default=300, help="time limit of each")
    args = parser.parse_args()
    unknown = set(args.model_types) - set(model_types())
    if unknown:
        parser.error(f"no such model type: {', '.join(sorted(unknown))}")
    names = args.model_types or model_types()
    outcomes = []
    for outcome in try_all(names, jobs=args.jobs, limit_seconds=args.seconds):
        outcomes.append(outcome)
        print(render_row(outcome), flush=True)
    if not args.model_types:
        TABLE.write_text(render(outcomes))
    print(render_counts(outcomes), file=sys.stderr)


def try_all(names: Sequence[str], *, jobs: int, limit_seconds: float) -> Iterable[Outcome]:
    """Tries model types in processes of their own, and yields the outcomes in the same order."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["docs.serving_trial", "transformers.generation.utils"])
    with ThreadPoolExecutor(jobs) as pool:
        yield from pool.map(lambda name: _try_one(context, name, limit_seconds), names)


def _try_one(context: ForkServerContext, name: str, limit_seconds: float) -> Outcome:
    receiver, sender = context.Pipe(duplex=False)
    process = context.Process(target=_try_and_send, args=(name, sender))
    process.start()
    sender.close()
    note = f"no outcome within {limit_seconds:g} seconds"
    try:
        if receiver.poll(limit_seconds):
            outcome: Outcome = receiver.recv()
            return outcome
    except EOFError:
        note = "its process died"
    finally:
        process.kill()
        process.join()
    return Outcome(
        model_type=name, class_name=class_name(name), verdict=Verdict.NOT_TRIED, note=note
    )


def _try_and_send(name: str, sender: Connection) -> None:
    with Path(os.devnull).open("w") as sink, redirect_stdout(sink), redirect_stderr(sink):
        outcome = try_model_type(name)
    sender.send(outcome)


def render(outcomes: Sequence[Outcome]) -> str:
    """Returns the whole page."""
    header = _HEADER.format(
        version=transformers.__version__,
        total=len(outcomes),
        counts=render_counts(outcomes),
    )
    return header + "".join(render_row(outcome) + "\n" for outcome in outcomes)


def render_counts(outcomes: Sequence[Outcome]) -> str:
    """Returns how often each verdict came, as a list."""
    counts = Counter(outcome.verdict for outcome in outcomes)
    return "\n".join(f"- {counts[verdict]} {verdict.value}" for verdict in Verdict)


def render_row(outcome: Outcome) -> str:
    """Returns a line of the table."""
    cells = (
        f"`{outcome.model_type}`",
        outcome.class_name,
        outcome.verdict.value,
        outcome.note.replace("|", "\\|"),
    )
    return f"| {' | '.join(cells)} |"


if __name__ == "__main__":
    main()
