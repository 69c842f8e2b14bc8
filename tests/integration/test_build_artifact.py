"""Artifacts of real checkpoints: what they answer, and what they refuse."""

from __future__ import annotations

import dataclasses
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import torch
from safetensors.torch import load_file, save_file

from furiosa_llm.artifact.contents import Bucket
from furiosa_llm.artifact.reading import read_artifact
from furiosa_llm.artifact_builder import build as builder
from furiosa_llm.artifact_builder.build import BuildProgress, build_artifact
from furiosa_llm.artifact_builder.options import BuildOptions
from furiosa_llm.artifact_builder.weights import Shard, StoredTensor, plan_shards
from furiosa_llm.batch.job import BatchJob
from furiosa_llm.batch.run import run_batch_job
from furiosa_llm.benchmark.runner import BenchmarkSpec, run_benchmark
from furiosa_llm.benchmark.workload import RandomWorkload
from furiosa_llm.config import EngineArgs
from furiosa_llm.errors import ConfigError, DatasetError, ModelLoadError
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.sampling_params import SamplingParams
from tests.factories import answer_all

SAMPLES = Path(__file__).parents[2] / "samples"
TINY = SAMPLES / "tiny-llama"
PROMPTS = ["What is 12 + 30?", "What is 99 - 7?", "Reverse the letters: model"]
GREEDY = SamplingParams(temperature=0, max_tokens=12)


def tokens(model: Path, dtype: str = "auto") -> list[list[int]]:
    engine = LLMEngine.from_engine_args(
        EngineArgs(model=str(model), dtype=dtype, paged_attention_num_blocks=64)
    )
    answers = answer_all(engine, PROMPTS, GREEDY)
    engine.shutdown()
    return [list(answer.outputs[0].token_ids) for answer in answers]


def weight_bytes(folder: Path) -> int:
    return sum(path.stat().st_size for path in folder.glob("*.safetensors"))


def files_of(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_artifact_answers_as_its_checkpoint_does(tmp_path: Path) -> None:
    summary = build_artifact(str(TINY), tmp_path / "a", BuildOptions())

    assert tokens(tmp_path / "a") == tokens(TINY)
    assert read_artifact(tmp_path / "a", verify=True) == summary.artifact
    assert summary.artifact.name == "a"
    assert summary.artifact.architecture == "LlamaForCausalLM"
    assert summary.artifact.dtype == "float32"
    assert summary.artifact.num_parameters == 832_640


def test_without_a_cast_every_file_of_the_checkpoint_is_the_same(tmp_path: Path) -> None:
    build_artifact(str(TINY), tmp_path / "a", BuildOptions())

    built, original = files_of(tmp_path / "a"), files_of(TINY)
    for name in (
        "config.json",
        "generation_config.json",
        "tokenizer.json",
        "tokenizer_config.json",
    ):
        assert built[name] == original[name]
    assert built.keys() - original.keys() == {"artifact.json", "runtime_config.json"}
    assert original.keys() - built.keys() == {"README.md"}


def test_a_bfloat16_artifact_is_half_as_large_and_runs_as_bfloat16(tmp_path: Path) -> None:
    build_artifact(str(TINY), tmp_path / "a", BuildOptions(auto_bfloat16_cast=True))

    assert weight_bytes(tmp_path / "a") < 0.51 * weight_bytes(TINY)
    assert json.loads((tmp_path / "a" / "config.json").read_text())["dtype"] == "bfloat16"
    assert tokens(tmp_path / "a") == tokens(TINY, "bfloat16")


@pytest.mark.parametrize("name", ["Qwen3Moe", "DeepseekV3", "GptOss", "Gemma2"])
def test_a_cast_artifact_answers_as_the_checkpoint_cast_when_loaded(
    name: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    model = checkpoint(name)

    build_artifact(str(model), tmp_path / "a", BuildOptions(dtype="bfloat16"))

    assert tokens(tmp_path / "a") == tokens(model, "bfloat16")


def test_weights_that_transformers_keeps_in_float32_are_not_cast(
    checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    model = tmp_path / "model"
    shutil.copytree(checkpoint("DeepseekV3"), model)
    name = "model.layers.1.mlp.gate.e_score_correction_bias"
    tensors = load_file(model / "model.safetensors")
    tensors[name] = torch.full_like(tensors[name], 1.001, dtype=torch.float32)
    save_file(tensors, model / "model.safetensors", {"format": "pt"})

    build_artifact(str(model), tmp_path / "a", BuildOptions(dtype="bfloat16"))

    built = load_file(tmp_path / "a" / "model.safetensors")
    assert torch.equal(built[name], tensors[name])
    assert built["lm_head.weight"].dtype == torch.bfloat16


def test_a_model_in_several_files_is_loaded_as_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def small_shards(tensors: list[StoredTensor]) -> list[Shard]:
        return plan_shards(tensors, max_bytes=500_000)

    monkeypatch.setattr(builder, "plan_shards", small_shards)
    build_artifact(str(TINY), tmp_path / "a", BuildOptions())
    monkeypatch.undo()
    build_artifact(str(tmp_path / "a"), tmp_path / "b", BuildOptions())  # and read as several

    assert len(list((tmp_path / "a").glob("*.safetensors"))) > 3
    assert not (tmp_path / "b" / "model.safetensors.index.json").exists()
    assert tokens(tmp_path / "a") == tokens(tmp_path / "b") == tokens(TINY)


def test_the_engine_takes_the_artifacts_sizes(tmp_path: Path) -> None:
    options = BuildOptions(
        prefill_buckets=(Bucket(1, 32),),
        decode_buckets=(Bucket(4, 256),),
        max_seq_len_to_capture=256,
        paged_attention_num_blocks=24,
        npu_queue_limit=1,
        max_processing_samples=9,
        spare_blocks_ratio=0.125,
        is_offline=True,
    )
    build_artifact(str(TINY), tmp_path / "a", options)

    engine = LLMEngine.from_engine_args(EngineArgs(model=str(tmp_path / "a"), npu_queue_limit=3))
    limits = engine.limits
    engine.shutdown()

    assert limits.model_info.max_model_len == 256
    assert limits.cache_config.num_blocks == 24
    assert dataclasses.asdict(limits.scheduler_config) == {
        "npu_queue_limit": 3,
        "max_processing_samples": 9,
        "spare_blocks_ratio": 0.125,
        "is_offline": True,
        "prefill_chunk_size": 32,
        "max_num_seqs": 4,
        "max_num_batched_tokens": 1024,
    }


def test_manifest_and_benchmark_tell_what_the_artifact_decided(tmp_path: Path) -> None:
    options = BuildOptions(dtype="bfloat16", devices="cpu", decode_buckets=(Bucket(4, 64),))
    build_artifact(str(TINY), tmp_path / "a", options)
    args = EngineArgs(model=str(tmp_path / "a"), paged_attention_num_blocks=64)
    rows = tmp_path / "in.jsonl"
    rows.write_text('{"prompt": "What is 1 + 1?"}\n')

    run_batch_job(
        BatchJob(
            engine_args=args,
            sampling_params=GREEDY,
            input=str(rows),
            output=tmp_path / "out.parquet",
        )
    )
    workload = RandomWorkload(num_prompts=1, input_len=(4, 4), output_len=(1, 1))
    result = run_benchmark(
        BenchmarkSpec(
            engine_args=args,
            sampling_params=GREEDY,
            workload=workload,
            num_warmups=0,
            num_repetitions=1,
        )
    )

    metadata = pq.read_schema(tmp_path / "out.parquet").metadata
    told = json.loads(metadata[b"furiosa_llm.manifest"])["options"]
    for values in (told, dataclasses.asdict(result.spec.engine_args)):
        assert (values["dtype"], values["devices"]) == ("bfloat16", "cpu")
        assert (values["max_num_seqs"], values["max_num_batched_tokens"]) == (4, 1024)


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        (
            BuildOptions(max_seq_len_to_capture=513),
            ConfigError,
            r"max_seq_len_to_capture \(513\) exceeds the model's own limit of 512 tokens",
        ),
        (
            BuildOptions(decode_buckets=(Bucket(1, 513),)),
            ConfigError,
            r"the decode bucket 1,513 is longer than the model's own limit \(512\); shorten",
        ),
    ],
)
def test_options_that_do_not_fit_the_model_are_refused(
    tmp_path: Path, options: BuildOptions, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        build_artifact(str(TINY), tmp_path / "a", options)
    assert list(tmp_path.iterdir()) == []


def test_a_quantised_checkpoint_is_copied_but_not_cast(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(TINY, model)
    config = json.loads((model / "config.json").read_text())
    config["quantization_config"] = {"quant_method": "fp8"}
    (model / "config.json").write_text(json.dumps(config))

    with pytest.raises(ConfigError, match="weights are quantised, and casting them would spoil"):
        build_artifact(str(model), tmp_path / "a", BuildOptions(dtype="bfloat16"))
    build_artifact(str(model), tmp_path / "a", BuildOptions())
    assert (tmp_path / "a" / "config.json").read_bytes() == (model / "config.json").read_bytes()


@pytest.mark.parametrize("name", ["Mamba", "T5"])
def test_what_run_cannot_serve_is_not_built(
    name: str, checkpoint: Callable[[str], Path], tmp_path: Path
) -> None:
    with pytest.raises(ModelLoadError, match="which is not supported"):
        build_artifact(str(checkpoint(name)), tmp_path / "a", BuildOptions())
    assert list(tmp_path.iterdir()) == []


def test_a_checkpoint_without_a_tokenizer_is_not_built(tmp_path: Path) -> None:
    model = tmp_path / "model"
    model.mkdir()
    for name in ("config.json", "model.safetensors"):
        shutil.copy(TINY / name, model)

    with pytest.raises(ModelLoadError, match="cannot load a tokenizer: the folder has none of"):
        build_artifact(str(model), tmp_path / "a", BuildOptions())
    assert not (tmp_path / "a").exists()


def test_a_file_that_changes_on_the_disk_before_it_is_checked_is_noticed(tmp_path: Path) -> None:
    def spoil(progress: BuildProgress) -> None:
        if progress.phase == "checking":
            path = tmp_path / ".a.building" / "model.safetensors"
            content = bytearray(path.read_bytes())
            content[-1] ^= 1
            path.write_bytes(content)

    with pytest.raises(DatasetError, match="does not read back as it was written"):
        build_artifact(str(TINY), tmp_path / "a", BuildOptions(), on_progress=spoil)
    assert list(tmp_path.iterdir()) == []


def test_an_interruption_while_weights_are_written_leaves_nothing(tmp_path: Path) -> None:
    def interrupt(progress: BuildProgress) -> None:
        if progress.num_bytes > progress.num_total_bytes / 2 > 0:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        build_artifact(str(TINY), tmp_path / "a", BuildOptions(), on_progress=interrupt)
    assert list(tmp_path.iterdir()) == []


def test_code_of_the_checkpoint_comes_along_only_if_it_is_trusted(tmp_path: Path) -> None:
    model = tmp_path / "model"
    shutil.copytree(TINY, model)
    (model / "modeling_own.py").write_text("")
    (model / "LICENSE").write_text("ours")
    (model / "pytorch_model.bin").write_text("old")

    build_artifact(str(model), tmp_path / "a", BuildOptions())
    build_artifact(str(model), tmp_path / "b", BuildOptions(trust_remote_code=True))

    assert files_of(tmp_path / "b").keys() - files_of(tmp_path / "a").keys() == {"modeling_own.py"}
    assert (tmp_path / "a" / "LICENSE").read_text() == "ours"
    assert not (tmp_path / "a" / "pytorch_model.bin").exists()
