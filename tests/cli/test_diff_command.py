from __future__ import annotations

import json
from pathlib import Path

import pytest

from furiosa_llm.batch.job import BatchJob
from furiosa_llm.batch.run import run_batch_job
from furiosa_llm.config import EngineArgs
from furiosa_llm.sampling_params import SamplingParams
from tests.cli.cli_factories import invoke

TINY = str(Path(__file__).parents[2] / "samples" / "tiny-llama")


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a greedy run and one at a high temperature, of the same rows."""
    folder = tmp_path_factory.mktemp("runs")
    rows: list[dict[str, object]] = [{"prompt": f"Add {number} and 4."} for number in range(12)]
    rows[7] = {"number": "no prompt"}
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, temperature in (("greedy", 0.0), ("again", 0.0), ("hot", 3.0)):
        run_batch_job(
            BatchJob(
                engine_args=EngineArgs(model=TINY, data_parallel_size=1, devices="cpu"),
                sampling_params=SamplingParams(temperature=temperature, max_tokens=8),
                input=str(folder / "in.jsonl"),
                output=folder / name,
            )
        )
    return folder


def test_equal_answers_are_told_and_end_with_0(outputs: Path) -> None:
    outcome = invoke("diff", str(outputs / "greedy"), str(outputs / "again"))

    assert (outcome.exit_code, outcome.stderr) == (0, "")
    lines = outcome.stdout.splitlines()
    assert lines[:3] == [
        "rows in both  12",
        "the same      12 of 12 (100 %)",
        "different     0 of 12 (0 %)",
    ]
    assert "The runs" not in lines
    assert not any("differ" in line for line in lines[3:])


def test_other_answers_are_shown_and_end_with_3(outputs: Path) -> None:
    outcome = invoke("diff", str(outputs / "greedy"), str(outputs / "hot"), "--show", "2")

    assert outcome.exit_code == 3
    lines = outcome.stdout.splitlines()
    assert "  temperature  0.0 -> 3.0" in lines
    shown = lines[lines.index("The first 2 rows that differ") + 1 :]
    assert [line[:4] for line in shown] == ["row ", "  - ", "  + "] * 2


def test_so_many_rows_may_differ(outputs: Path) -> None:
    paths = (str(outputs / "greedy"), str(outputs / "hot"))
    number = json.loads(invoke("diff", *paths, "--json").stdout)["num_different"]

    allowed = invoke("diff", *paths, "--quiet", "--max-different", str(number))
    refused = invoke("diff", *paths, "--quiet", "--max-different", str(number - 1))

    assert (allowed.exit_code, allowed.stdout) == (0, "")
    assert (refused.exit_code, refused.stdout) == (3, "")


def test_json_holds_everything(outputs: Path) -> None:
    outcome = invoke("diff", str(outputs / "greedy"), str(outputs / "hot"), "--json")

    content = json.loads(outcome.stdout)
    assert content["num_rows"] == 12
    assert content["kinds"]["answer"] == content["num_different"]
    assert {"name": "temperature", "before": 0.0, "after": 3.0} in content["changes"]
    assert content["costs"]["e2e_s"]["before"] > 0
    assert len(content["examples"]) == min(content["num_different"], 10)


def test_an_output_that_is_not_there_ends_with_4(outputs: Path) -> None:
    outcome = invoke("diff", str(outputs / "greedy"), str(outputs / "absent"))

    assert outcome.exit_code == 4
    assert outcome.stdout == ""
    assert outcome.stderr.startswith(f"Error: {outputs / 'absent'} does not exist; ")
