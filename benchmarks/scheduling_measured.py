"""The same comparisons in seconds, on a small model of random weights."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from benchmarks import scheduling_workloads as workloads
from benchmarks.scheduling_cases import (
    BALANCE,
    FORECAST,
    LONGEST,
    PREFIXES,
    SMALL_BESIDE_LARGE,
    Case,
    Result,
    by_count,
    whole,
    without,
)
from benchmarks.scheduling_runs import BLOCK_SIZE, Setup, make_prompt, run
from benchmarks.scheduling_workloads import VOCAB_SIZE, Row
from furiosa_llm.config import EngineArgs
from furiosa_llm.execution.prepared_model import prepare_model
from furiosa_llm.execution.step_queue import StepRunner
from furiosa_llm.replicas.dispatcher import most_work
from furiosa_llm.replicas.launcher_process import LauncherProcess
from furiosa_llm.replicas.messages import Launch
from furiosa_llm.replicas.placement import place, usable_cores
from furiosa_llm.replicas.pool import ReplicaPool
from furiosa_llm.request import TokenizedPrompt

MEASURED = "seconds, measured"
_TOKENIZER = Path(__file__).parents[1] / "samples" / "tiny-llama"
_NUM_TIMES = 3

CASES = [
    Case(
        part=PREFIXES,
        name="64 in 4 groups, 64 blocks",
        rows=lambda: workloads.grouped(4, 16),
        setup=Setup(num_blocks=64),
        measures=(MEASURED,),
    ),
    Case(
        part=LONGEST,
        name="128, one in 16 with 512 tokens to answer, the others with 64",
        rows=lambda: workloads.few_long(128),
        setup=Setup(num_blocks=4000, max_num_seqs=32),
        measures=(MEASURED,),
    ),
    Case(
        part=FORECAST,
        name="30, answers of 32 to 512 tokens, 40 blocks",
        rows=lambda: workloads.mixed(30, prompt_len=(32, 256), max_tokens=(32, 512)),
        setup=Setup(num_blocks=40),
        measures=(MEASURED,),
    ),
    Case(
        part=FORECAST,
        name="80, answers end at 10 to 50 % of 32 to 512 tokens, 40 blocks",
        rows=lambda: workloads.mixed(
            80, prompt_len=(32, 256), max_tokens=(32, 512), ends_at=(0.1, 0.5)
        ),
        setup=Setup(num_blocks=40),
        measures=(MEASURED,),
    ),
    Case(
        part=SMALL_BESIDE_LARGE,
        name="24, answers of 64 to 1,024 tokens, 64 blocks",
        rows=lambda: workloads.mixed(24, prompt_len=(16, 128), max_tokens=(64, 1024)),
        setup=Setup(num_blocks=64),
        measures=(MEASURED,),
    ),
]


def make_checkpoint(folder: Path) -> None:
    """Writes a Llama of 3.5 million random parameters, with the tokenizer of the sample model."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=192,
        intermediate_size=640,
        num_hidden_layers=6,
        num_attention_heads=3,
        num_key_value_heads=3,
        max_position_embeddings=8192,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    for path in _TOKENIZER.glob("tokenizer*"):
        shutil.copy(path, folder)


def measure(case: Case, checkpoint: Path) -> Iterator[Result]:
    """Runs a case with one thread, both ways in turn."""
    rows = case.rows()
    args = _engine_args(checkpoint, case.setup)
    runner = prepare_model(args).make_runner(num_threads=1)
    _warm_up(runner)
    pairs = [
        (
            _seconds(lambda: run(rows, case.setup, without(case.part), runner)),
            _seconds(lambda: run(rows, case.setup, whole(), runner)),
        )
        for _ in range(_NUM_TIMES)
    ]
    yield _result(case.part, case.name, pairs)


def measure_balance(checkpoint: Path) -> Iterator[Result]:
    """Runs two replicas of one thread each, both ways in turn."""
    setup = Setup(num_blocks=2000)
    draws = [workloads.documents(24, seed=seed) for seed in range(4)]
    args = _engine_args(checkpoint, setup, num_replicas=2)
    pools = [_start(args, weigh) for weigh in (by_count, most_work)]
    try:
        for pool in pools:
            _answer(pool, draws[0][:8])
        pairs = []
        for _ in range(_NUM_TIMES):
            off, on = (
                sum(_seconds(partial(_answer, pool, rows)) for rows in draws) for pool in pools
            )
            pairs.append((off, on))
    finally:
        for pool in pools:
            pool.close()
    yield _result(BALANCE, "4 times 24 documents, 2 replicas; without: by count", pairs)


def _start(args: EngineArgs, weigh: Callable[[TokenizedPrompt], int]) -> ReplicaPool:
    placement = place(args, cores=usable_cores(), num_gpus=0, num_cpu_replicas=1)
    launcher = LauncherProcess(Launch(args, placement, time.monotonic()))
    return ReplicaPool(launcher, placement.num_replicas, weigh=weigh)


def _answer(pool: ReplicaPool, rows: Sequence[Row]) -> None:
    for index, row in enumerate(rows):
        pool.add(make_prompt(str(index), row))
    while pool.num_unfinished:
        pool.step()


def _engine_args(checkpoint: Path, setup: Setup, *, num_replicas: int = 1) -> EngineArgs:
    return EngineArgs(
        model=str(checkpoint),
        devices="cpu",
        data_parallel_size=num_replicas,
        is_offline=True,
        enable_prefix_caching=num_replicas == 1,
        paged_attention_num_blocks=setup.num_blocks,
        paged_attention_block_size=BLOCK_SIZE,
        max_num_seqs=setup.max_num_seqs,
        max_num_batched_tokens=setup.max_num_batched_tokens,
        npu_queue_limit=1,
    )


def _warm_up(runner: StepRunner) -> None:
    run(workloads.grouped(1, 4), Setup(num_blocks=100), whole(), runner)


def _seconds(work: Callable[[], object]) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def _result(part: str, name: str, pairs: Sequence[tuple[float, float]]) -> Result:
    """Returns the pair with the median ratio."""
    middle = statistics.median_low([on / off for off, on in pairs])
    off, on = next((off, on) for off, on in pairs if on / off == middle)
    return Result(part=part, rows=name, measure=MEASURED, off=off, on=on)
