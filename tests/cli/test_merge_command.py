from __future__ import annotations

import json
from pathlib import Path

import pyarrow.parquet as pq
import pytest

from furiosa_llm.batch.job import BatchJob
from furiosa_llm.batch.run import run_batch_job
from furiosa_llm.config import EngineArgs
from furiosa_llm.dataset.shard import WHOLE, Shard
from furiosa_llm.sampling_params import SamplingParams
from tests.cli.cli_factories import REQUIRED, FakeBatch, invoke

TINY = str(Path(__file__).parents[2] / "samples" / "tiny-llama")
TIMINGS = {"queue_s", "ttft_s", "tpot_s", "e2e_s", "block_seconds", "replica"}


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the outputs of a whole run and of its two shards."""
    folder = tmp_path_factory.mktemp("shards")
    rows: list[dict[str, object]] = [
        {"prompt": f"Add {number} and 4.", "number": number, "seed": 5 if number % 3 else None}
        for number in range(20)
    ]
    rows[7] = {"number": "no prompt"}
    (folder / "in.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    for name, shard in (("whole", WHOLE), ("1", Shard(1, 2)), ("2", Shard(2, 2))):
        run_batch_job(
            BatchJob(
                engine_args=EngineArgs(model=TINY, data_parallel_size=1, devices="cpu"),
                sampling_params=SamplingParams(temperature=1, max_tokens=8, n=2),
                input=str(folder / "in.jsonl"),
                output=folder / name,
                shard=shard,
            )
        )
    return folder


def test_merged_shards_equal_the_run_without_shards(outputs: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out.parquet")

    outcome = invoke("merge", out, str(outputs / "2"), str(outputs / "1"))

    assert (outcome.exit_code, outcome.stdout) == (0, "")
    assert outcome.stderr == f"{out}: 20 rows of 2 shards, 1 of them failed\n"
    whole, merged = pq.read_table(outputs / "whole"), pq.read_table(out)
    assert merged.schema.remove_metadata() == whole.schema.remove_metadata()
    for name in set(whole.column_names) - TIMINGS:
        assert merged.column(name).equals(whole.column(name)), name


def test_the_manifest_names_the_shard_and_what_was_trusted(outputs: Path) -> None:
    manifest = json.loads(pq.read_schema(outputs / "2").metadata[b"furiosa_llm.manifest"])

    assert manifest["shard"] == {"number": 2, "count": 2}
    assert manifest["options"]["trust_remote_code"] is False
    assert manifest["options"]["allow_pickle"] is False


def test_missing_shards_are_an_error_unless_allowed(outputs: Path, tmp_path: Path) -> None:
    out = str(tmp_path / "out.parquet")

    refused = invoke("merge", out, str(outputs / "1"))
    allowed = invoke("merge", out, str(outputs / "1"), "--allow-missing", "--quiet")
    again = invoke("merge", out, str(outputs / "1"), "--allow-missing")
    over = invoke("merge", out, str(outputs / "1"), "--allow-missing", "--overwrite")

    assert refused.exit_code == 4
    assert refused.stderr.startswith("Error: 1 of 2 shards is missing: 2/2; ")
    assert (allowed.exit_code, allowed.stderr) == (3, "")
    assert again.exit_code == 4
    assert "exists already" in again.stderr
    assert over.stderr == f"{out}: 10 rows of 1 shard\n"


def test_a_shard_twice_is_a_wrong_option(outputs: Path, tmp_path: Path) -> None:
    outcome = invoke("merge", str(tmp_path / "o"), str(outputs / "1"), str(outputs / "1"))

    assert outcome.exit_code == 2
    assert "both hold shard 1/2" in outcome.stderr


def test_an_output_that_is_a_shard_or_a_folder_is_refused(outputs: Path, tmp_path: Path) -> None:
    shard = str(outputs / "1")

    itself = invoke("merge", shard, shard, "--overwrite")
    folder = invoke("merge", f"{tmp_path}/new/", shard)

    assert (itself.exit_code, folder.exit_code) == (2, 2)
    assert "name a file to join the shards in" in folder.stderr


@pytest.mark.parametrize(
    ("text", "expected"), [("0/2", "does not exist"), ("x", "write I/N, for example 1/4")]
)
def test_a_shard_that_makes_no_sense_is_a_wrong_option(
    batch: FakeBatch, text: str, expected: str
) -> None:
    outcome = invoke("run", *REQUIRED, "--shard", text)

    assert outcome.exit_code == 2
    assert expected in outcome.stderr
    assert not batch.jobs


def test_run_takes_a_shard(batch: FakeBatch) -> None:
    invoke("run", *REQUIRED, "--shard", "2/4")

    assert batch.job.shard == Shard(2, 4)
