"""Looks for inputs that the reader of rows cannot bear: `python -m tests.fuzz.rows --minutes 10`.

It changes the files of tests/corpus/rows at random. An input that breaks a check is written to the
folder `--findings`, and the seed and number of it are shown; put it into the corpus when the fault
is mended.
"""

from __future__ import annotations

import argparse
import random
import sys
import time
import traceback
from pathlib import Path

from furiosa_llm.sampling_params import PARAMETER_NAMES
from tests.fuzz.checks import CORPUS, check_params, check_rows, check_written
from tests.fuzz.mutations import mutated, random_params

_WRITTEN_EVERY = 50
_REPORT_SECONDS = 30.0


def main() -> int:
    """Runs for as long as it was told to. Returns 1 if anything was found."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--findings", type=Path, default=Path("findings"))
    args = parser.parse_args()
    corpus = [path.read_bytes() for path in sorted(CORPUS.iterdir())]
    draws = random.Random(args.seed)
    names = sorted(PARAMETER_NAMES)
    started = reported = time.monotonic()
    num_inputs = num_rows = num_findings = 0
    while time.monotonic() - started < 60 * args.minutes:
        content = mutated(draws.choice(corpus), corpus, draws)
        params = random_params(names, draws)
        try:
            num_rows += check_rows(content)
            check_params(params)
            if num_inputs % _WRITTEN_EVERY == 0:
                check_written(content)
        except Exception:  # noqa: BLE001 - this is what it looks for
            num_findings += 1
            args.findings.mkdir(exist_ok=True)
            (args.findings / f"{args.seed}-{num_inputs}.jsonl").write_bytes(content)
            _say(f"input {num_inputs} of seed {args.seed}, parameters {params!r:.500}")
            traceback.print_exc()
        num_inputs += 1
        if time.monotonic() - reported > _REPORT_SECONDS:
            reported = time.monotonic()
            _say(f"{num_inputs:,} inputs, {num_rows:,} rows, {num_findings} findings")
    _say(f"{num_inputs:,} inputs, {num_rows:,} rows, {num_findings} findings at the end")
    return 1 if num_findings else 0


def _say(text: str) -> None:
    sys.stderr.write(f"{text}\n")


if __name__ == "__main__":
    sys.exit(main())
