"""Every command and argparse offer the same engine options, from one description."""

from __future__ import annotations

import argparse

import click
import pytest

from furiosa_llm.config import EngineArgs
from furiosa_llm.options import options_of
from furiosa_llm_cli.main import cli
from tests.cli.cli_factories import REQUIRED, FakeBatch, invoke

OPTIONS = (
    *("--model", "--tokenizer", "--tokenizer-mode", "--seed", "--devices"),
    *("--pipeline-parallel-size", "--data-parallel-size", "--tensor-parallel-size"),
    *("--threads-per-replica", "--cache-dir", "--paged-attention-num-blocks"),
    *("--paged-attention-block-size", "--npu-queue-limit", "--max-processing-samples"),
    *("--spare-blocks-ratio", "--is-offline", "--dtype", "--max-model-len", "--max-num-seqs"),
    *("--max-num-batched-tokens", "--enable-prefix-caching", "--prefill-chunk-size"),
)


def make_parser() -> argparse.ArgumentParser:
    return EngineArgs.add_cli_args(argparse.ArgumentParser())


def click_options(command: str) -> dict[str, click.Option]:
    return {
        flag: param
        for param in cli.commands[command].params
        if isinstance(param, click.Option)
        for flag in param.opts
    }


@pytest.mark.parametrize("command", ["run", "bench"])
def test_a_command_takes_every_engine_option_and_explains_it(command: str) -> None:
    offered = click_options(command)

    assert set(OPTIONS) <= set(offered)
    for entry in options_of(EngineArgs):
        assert offered[entry.flag].help == entry.help


def test_argparse_takes_them_too_and_explains_them_alike() -> None:
    words = " ".join(make_parser().format_help().split())

    for entry in options_of(EngineArgs):
        assert entry.flag in words
        assert entry.help in words
    assert set(OPTIONS) <= {entry.flag for entry in options_of(EngineArgs)}


def test_what_argparse_reads_is_what_the_dataclass_means() -> None:
    line = (
        "--model m --devices npu:0:0-3 --tensor-parallel-size 4 --pipeline-parallel-size 1 "
        "--data-parallel-size 2 --threads-per-replica 3 --cache-dir None --npu-queue-limit 1 "
        "--paged-attention-num-blocks 2k --max-processing-samples 1K --spare-blocks-ratio 0.5 "
        "--no-enable-prefix-caching --prefill-chunk-size 64 --seed 7 --dtype bfloat16"
    )

    args = EngineArgs.from_cli_args(make_parser().parse_args(line.split()))

    assert args == EngineArgs(
        model="m",
        devices="npu:0:0-3",
        tensor_parallel_size=4,
        pipeline_parallel_size=1,
        data_parallel_size=2,
        threads_per_replica=3,
        cache_dir=None,
        npu_queue_limit=1,
        paged_attention_num_blocks=2000,
        max_processing_samples=1024,
        spare_blocks_ratio=0.5,
        enable_prefix_caching=False,
        prefill_chunk_size=64,
        seed=7,
        dtype="bfloat16",
    )


def test_argparse_without_options_gives_the_defaults_of_the_dataclass() -> None:
    args = EngineArgs.from_cli_args(make_parser().parse_args(["--model", "m"]))

    assert args == EngineArgs(model="m")


@pytest.mark.parametrize(
    ("text", "value"),
    [("True", True), ("False", False), ("1", True), ("0", False), ("yes", True), ("no", False)],
)
def test_is_offline_means_what_it_reads_for_argparse_as_well(text: str, value: bool) -> None:
    namespace = make_parser().parse_args(["--model", "m", "--is-offline", text])

    assert EngineArgs.from_cli_args(namespace).is_offline is value


@pytest.mark.parametrize(
    ("args", "env"),
    [((), {"FURIOSA_LLM_RUN_QUANTIZATION": "none"}), (("--quantization", "none"), {})],
)
def test_none_leaves_an_option_to_the_engine(
    args: tuple[str, ...], env: dict[str, str], batch: FakeBatch
) -> None:
    outcome = invoke("run", *REQUIRED, *args, env=env)

    assert outcome.exit_code == 0, outcome.stderr
    assert batch.job.engine_args.quantization is None
    assert batch.job.engine_args.left_open == ("quantization",)
