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
def output(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An output with a row that failed."""
    folder = tmp_path_factory.mktemp("run")
    rows: list[dict[str, object]] = [{"prompt": f"Add {number} and 4."} for number in range(5)]
    rows[3] = {"number": "no prompt"}
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    run_batch_job(
        BatchJob(
            engine_args=EngineArgs(model=TINY, data_parallel_size=1, devices="cpu", seed=7),
            sampling_params=SamplingParams(temperature=0, max_tokens=8),
            input=str(folder / "in.jsonl"),
            output=folder / "out.parquet",
        )
    )
    return folder / "out.parquet"


def facts_of(text: str) -> dict[str, str]:
    lines = [line.strip().split("  ", 1) for line in text.splitlines() if line.startswith("  ")]
    return {name: rest[0].strip() for name, *rest in lines if rest}


def test_it_tells_of_an_output(output: Path) -> None:
    outcome = invoke("inspect", str(output))

    assert (outcome.exit_code, outcome.stderr) == (0, "")
    assert outcome.stdout.startswith(f"Output {output}\n")
    facts = facts_of(outcome.stdout)
    assert facts["rows"] == "5"
    assert facts["failed"] == "1 (20 %)"
    assert facts["invalid_row"].startswith("1; for example, row 3: the row has no prompt")
    assert facts["model"] == TINY
    assert facts["seed"] == "7"
    assert len(facts["to the first token"].split()) == 4


def test_json_holds_the_whole_manifest(output: Path) -> None:
    content = json.loads(invoke("inspect", str(output), "--json").stdout)

    assert content["kind"] == "output"
    assert content["num_rows"] == 5
    assert content["manifest"]["options"]["seed"] == 7
    assert content["error_counts"] == {"invalid_row": 1}


def test_it_tells_of_an_unfinished_run(tmp_path: Path) -> None:
    out = tmp_path / "out.parquet"
    out.with_name("out.parquet.parts").mkdir()
    status = {"state": "stopped", "rows_done": 4, "rows_total": 1000, "reason": "SIGTERM"}
    out.with_name("out.parquet.status.json").write_text(json.dumps(status))

    outcome = invoke("inspect", str(out))

    facts = facts_of(outcome.stdout)
    assert (facts["state"], facts["done rows"]) == ("stopped", "4 of 1,000")
    assert facts["reason"] == "SIGTERM"


def test_it_tells_of_a_checkpoint_and_of_an_artifact(tmp_path: Path) -> None:
    artifact = str(tmp_path / "artifact")
    assert invoke("build", TINY, artifact, "--max-seq-len-to-capture", "64").exit_code == 0

    checkpoint = facts_of(invoke("inspect", TINY).stdout)
    built = facts_of(invoke("inspect", artifact).stdout)

    assert checkpoint["architecture"] == built["architecture"] == "LlamaForCausalLM"
    assert checkpoint["context"] == "512 tokens"
    assert built["max_model_len"] == "64"
    assert json.loads(invoke("inspect", artifact, "--json").stdout)["kind"] == "artifact"


def test_what_is_not_there_ends_with_4(tmp_path: Path) -> None:
    outcome = invoke("inspect", str(tmp_path / "absent"))

    assert (outcome.exit_code, outcome.stdout) == (4, "")
    assert "does not exist" in outcome.stderr
