from __future__ import annotations

import os
import resource
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import pytest

from furiosa_llm.artifact.contents import Artifact, ArtifactFile, Bucket
from furiosa_llm.artifact_builder.build import BuildProgress, BuildSummary
from furiosa_llm.artifact_builder.options import BuildOptions
from furiosa_llm.errors import ConfigError, DatasetError, ModelLoadError
from furiosa_llm_cli.commands.build import ProgressLines
from tests.cli.cli_factories import invoke
from tests.factories import FakeClock

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "samples" / "tiny-llama"
ARTIFACT = Artifact(
    name="out",
    model="m",
    architecture="LlamaForCausalLM",
    dtype="bfloat16",
    num_parameters=8_000_000_000,
    num_weight_bytes=16_000_000_000,
    files=(ArtifactFile(name="model.safetensors", num_bytes=16_000_500_000, hash=""),),
)


@dataclass
class FakeBuild:
    """Stands for `build_artifact`: remembers what it was asked."""

    error: BaseException | None = None
    progress: Sequence[BuildProgress] = ()
    asked: list[tuple[str, Path, BuildOptions, bool]] = field(default_factory=list)

    def __call__(
        self,
        model: str,
        output: Path,
        options: BuildOptions,
        *,
        overwrite: bool,
        on_progress: Callable[[BuildProgress], None],
    ) -> BuildSummary:
        self.asked.append((model, output, options, overwrite))
        for progress in self.progress:
            on_progress(progress)
        if self.error is not None:
            raise self.error
        return BuildSummary(
            output=output, artifact=ARTIFACT, num_stored_bytes=32_000_000_000, seconds=61.0
        )


@pytest.fixture
def fake(monkeypatch: pytest.MonkeyPatch) -> FakeBuild:
    build = FakeBuild()
    monkeypatch.setattr("furiosa_llm.artifact_builder.build.build_artifact", build)
    return build


def options_of(fake: FakeBuild, *args: str) -> BuildOptions:
    outcome = invoke("build", "m", "out", "-q", *args)
    assert (outcome.exit_code, outcome.stderr) == (0, "")
    return fake.asked[-1][2]


def test_every_option_has_its_long_name(fake: FakeBuild) -> None:
    options = options_of(
        fake,
        *(
            "--name",
            "n",
            "--devices",
            "npu:0,npu:1,npu:2,npu:3",
            "--dtype",
            "float16",
            "--trust-remote-code",
        ),
        *("--tensor-parallel-size", "4", "--pipeline-parallel-size", "2"),
        *("--data-parallel-size", "3", "--prefill-buckets", "1,128", "--decode-buckets", "8,512"),
        *("--max-seq-len-to-capture", "4K", "--prefill-chunk-size", "64"),
        *("--paged-attention-num-blocks", "9", "--npu-queue-limit", "3"),
        *("--max-processing-samples", "1k", "--spare-blocks-ratio", "0.5", "--is-offline", "no"),
    )

    assert options == BuildOptions(
        name="n",
        devices="npu:0,npu:1,npu:2,npu:3",
        dtype="float16",
        trust_remote_code=True,
        tensor_parallel_size=4,
        pipeline_parallel_size=2,
        data_parallel_size=3,
        prefill_buckets=(Bucket(1, 128),),
        decode_buckets=(Bucket(8, 512),),
        max_seq_len_to_capture=4096,
        prefill_chunk_size=64,
        paged_attention_num_blocks=9,
        npu_queue_limit=3,
        max_processing_samples=1000,
        spare_blocks_ratio=0.5,
        is_offline=False,
    )


def test_short_names_are_those_of_the_original(fake: FakeBuild) -> None:
    options = options_of(
        fake,
        *("-tp", "4", "-pp=2", "-dp", "3", "-pb", "1,128", "-pb", "4,64", "-db", "8,512"),
        "--auto-bfloat16-cast",
    )

    assert options == BuildOptions(
        tensor_parallel_size=4,
        pipeline_parallel_size=2,
        data_parallel_size=3,
        prefill_buckets=(Bucket(1, 128), Bucket(4, 64)),
        decode_buckets=(Bucket(8, 512),),
        auto_bfloat16_cast=True,
    )


def test_buckets_may_stand_in_a_file(fake: FakeBuild, tmp_path: Path) -> None:
    path = tmp_path / "c.yaml"
    path.write_text("build:\n  prefill-buckets: ['1,128', '4,64']\n  decode_buckets: '8,512'\n")

    options = options_of(fake, "--config", str(path))

    assert options.prefill_buckets == (Bucket(1, 128), Bucket(4, 64))
    assert options.decode_buckets == (Bucket(8, 512),)


def test_model_and_output_come_by_place(fake: FakeBuild) -> None:
    invoke("build", "some/model", "a folder", "--overwrite")
    invoke("build", "m", "out")

    assert fake.asked == [
        ("some/model", Path("a folder"), BuildOptions(), True),
        ("m", Path("out"), BuildOptions(), False),
    ]
    assert "Missing argument 'OUT'" in invoke("build", "m").stderr


def test_the_end_says_what_was_written_and_how_to_run_it(fake: FakeBuild) -> None:
    fake.progress = [
        BuildProgress(phase="reading"),
        BuildProgress(phase="writing", num_bytes=1, num_total_bytes=16_000_000_000),
        BuildProgress(phase="checking"),
        BuildProgress(phase="done"),
    ]

    outcome = invoke("build", "m", "my out")

    lines = outcome.stderr.splitlines()
    assert (outcome.exit_code, outcome.stdout) == (0, "")
    assert lines[:7] == [
        "reading the checkpoint",
        "writing 14.9 GiB of weights",
        "checking what was written",
        "artifact  out",
        "model     LlamaForCausalLM, 8,000,000,000 parameters",
        "weights   14.9 GiB, mostly bfloat16; 29.8 GiB in the checkpoint",
        "output    my out, 14.9 GiB",
    ]
    assert lines[7].startswith("time      1 min 01 s (libraries 0.")
    assert lines[8] == (
        "run it    furiosa-llm run --model 'my out' --input prompts.jsonl --output answers.parquet"
    )


def test_a_long_build_says_now_and_then_how_far_it_is() -> None:
    lines: list[str] = []
    clock = FakeClock()
    progress = ProgressLines(lines.append, clock)

    for num_bytes in range(1, 11):
        progress.update(
            BuildProgress(phase="writing", num_bytes=num_bytes * 2**30, num_total_bytes=10 * 2**30)
        )
        clock.now += 2.0

    assert lines == [
        "writing 10.0 GiB of weights",
        "4.0 GiB of 10.0 GiB written, 40 %",
        "7.0 GiB of 10.0 GiB written, 70 %",
        "10.0 GiB of 10.0 GiB written, 100 %",
    ]


@pytest.mark.parametrize(
    ("error", "exit_code", "line"),
    [
        (ConfigError("a does not go with b"), 2, "a does not go with b"),
        (DatasetError("out: cannot be written"), 4, "out: cannot be written"),
        (ModelLoadError("m: no such model"), 5, "m: no such model"),
        (KeyboardInterrupt(), 75, "interrupted"),
    ],
)
def test_a_build_that_fails_is_one_line_and_an_exit_code(
    fake: FakeBuild, error: BaseException, exit_code: int, line: str
) -> None:
    fake.error = error

    outcome = invoke("build", "m", "out")

    assert (outcome.exit_code, outcome.stdout) == (exit_code, "")
    assert outcome.stderr == f"Error: {line}\n"


@pytest.mark.parametrize(
    ("args", "message"),
    [
        (["-pb", "4"], "Invalid value for '-pb' / '--prefill-buckets': '4' is not a bucket; write"),
        (["-db", "0,1"], "Invalid value for '-db' / '--decode-buckets': batch and length of a b"),
        (["-tp", "0"], "tensor_parallel_size must be at least 1, got 0"),
        (["--dtype", "float16", "--auto-bfloat16-cast"], "auto_bfloat16_cast and dtype float16 ex"),
        (["--quantization-artifact-path", "q"], "quantization_artifact_path (q) cannot be used: q"),
        (
            ["--quantization", "fp8", "--devices", "cpu"],
            "quantization fp8 is for GPUs, and devices is cpu; give int8, or other devices",
        ),
    ],
)
def test_options_that_cannot_work_are_refused_before_anything_is_loaded(
    fake: FakeBuild, args: list[str], message: str
) -> None:
    outcome = invoke("build", "m", "out", *args)

    assert (outcome.exit_code, fake.asked) == (2, [])
    assert outcome.stderr.startswith(f"Error: {message}")


def test_a_file_system_that_takes_no_more_ends_with_4_and_leaves_nothing(tmp_path: Path) -> None:
    def limit_files() -> None:
        resource.setrlimit(resource.RLIMIT_FSIZE, (2**20, 2**20))

    done = subprocess.run(
        [sys.executable, "-m", "furiosa_llm_cli", "build", str(MODEL), "out", "-q"],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT / "engine"), str(ROOT)])},
        preexec_fn=limit_files,
        capture_output=True,
        text=True,
        check=False,
    )

    assert (done.returncode, done.stdout) == (4, "")
    assert done.stderr == (
        f"Error: {tmp_path}/.out.building/model.safetensors: cannot be written: File too large\n"
    )
    assert list(tmp_path.iterdir()) == []


def test_more_stages_than_layers_are_refused(tmp_path: Path) -> None:
    outcome = invoke("build", str(MODEL), str(tmp_path / "out"), "-pp", "9")

    assert outcome.exit_code == 2
    assert "the pipeline-parallel size (9) exceeds the model's 4 layers" in outcome.stderr
    assert list(tmp_path.iterdir()) == []


def test_sizes_that_the_devices_cannot_hold_are_refused() -> None:
    outcome = invoke("build", str(MODEL), "unused", "--devices", "npu:0", "-tp", "3")

    assert outcome.exit_code == 2
    assert "tensor_parallel_size must be 1, 2, 4 or a multiple of 8 on NPUs, got 3" in (
        outcome.stderr
    )
