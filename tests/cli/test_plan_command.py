from __future__ import annotations

import json
from pathlib import Path

from tests.cli.cli_factories import invoke

TINY = str(Path(__file__).parents[2] / "samples" / "tiny-llama")


def write(path: Path, *rows: object) -> str:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return str(path)


def test_a_plan_of_good_rows_ends_with_0(tmp_path: Path) -> None:
    rows = write(tmp_path / "in.jsonl", *({"prompt": f"Add {n} and 4."} for n in range(5)))

    outcome = invoke("plan", "-m", TINY, "-i", rows, "--sample", "2", "--max-tokens", "8")

    assert outcome.exit_code == 0
    assert outcome.stderr.splitlines() == ["loading the model", "answering 2 rows"]
    facts = dict(line.split(maxsplit=1) for line in outcome.stdout.splitlines())
    assert facts["rows"] == "5"
    assert facts["engine"] == "1 replica, on cpu"
    assert facts["tokens"].endswith("; 40 at most")
    assert facts["time"].startswith("about ")
    assert list(tmp_path.iterdir()) == [tmp_path / "in.jsonl"]


def test_rows_that_cannot_be_answered_are_named_and_end_with_3(tmp_path: Path) -> None:
    rows = write(tmp_path / "in.jsonl", {"prompt": "Add 1 and 4."}, {"nothing": 1})

    outcome = invoke("plan", "-m", TINY, "-i", rows, "--sample", "0", "--quiet")

    assert (outcome.exit_code, outcome.stderr) == (3, "")
    lines = outcome.stdout.splitlines()
    assert lines[1].split() == ["not", "answered", "1", "of", "2", "(50", "%)"]
    assert lines[2].startswith("invalid_row   1; for example, row 1: the row has no prompt")
    assert lines[-1].startswith("time          not known; ")


def test_json_holds_everything(tmp_path: Path) -> None:
    rows = write(tmp_path / "in.jsonl", {"prompt": "Add 1 and 4."}, {"nothing": 1})

    outcome = invoke("plan", "-m", TINY, "-i", rows, "--sample", "1", "--json")

    content = json.loads(outcome.stdout)
    assert content["num_rows"] == 2
    assert content["error_counts"] == {"invalid_row": 1}
    assert content["sample"]["num_rows"] == 1
    assert content["estimated_seconds"] == content["sample"]["seconds"]


def test_a_model_that_is_not_there_ends_with_5(tmp_path: Path) -> None:
    rows = write(tmp_path / "in.jsonl", {"prompt": "Add 1 and 4."})

    outcome = invoke("plan", "-m", str(tmp_path), "-i", rows)

    assert (outcome.exit_code, outcome.stdout) == (5, "")
