"""Measures this engine on a GPU with one model: requests, decodes alone, prefills alone.

    python -m benchmarks.gpu_engine CHECKPOINT gpu-mixed --limits '{"copy_bytes_per_second": …}'

Prints a JSON line. `benchmarks.gpu` runs it for each model.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import statistics
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch

from benchmarks.drivers.furiosa import engine_args
from benchmarks.gpu_limits import Limits, finish
from benchmarks.gpu_models import config_of
from benchmarks.gpu_roofline import ModelCost, least_seconds_of_steps
from benchmarks.gpu_trace import idle_share, traced_spans
from benchmarks.workloads import WORKLOADS, WorkloadRow, make_workload
from furiosa_llm.engine_core import EngineCore
from furiosa_llm.execution.prepared_model import PreparedModel, prepare_model
from furiosa_llm.execution.step_queue import StepRunner, queue_for
from furiosa_llm.outputs import StepStats
from furiosa_llm.request import TokenizedPrompt
from furiosa_llm.sampling_params import RequestOutputKind, SamplingParams
from furiosa_llm.scheduler_output import (
    NO_COUNTS,
    SamplingInputs,
    ScheduledRequest,
    SchedulerOutput,
)
from furiosa_llm.tokenization import Tokenizer

NUM_DECODING, DECODE_POSITION = 256, 1000
NUM_PREFILLED, PREFILL_LENGTH = 8, 1024
_NUM_STEPS = 30
_FIRST_TRACED_STEP, _NUM_TRACED_STEPS = 100, 60
_WARM_UP_SHARE = 16
_GREEDY = SamplingInputs(params=SamplingParams(temperature=0), seed=0, position=0)
_WEIGHT_BYTES = {None: 2, "fp8": 1, "int8": 1, "int4": 0.625}  # with the scales of groups
_SETTINGS = ("dtype=bfloat16", "max_num_batched_tokens=8192", "max_num_seqs=256")


@dataclass(frozen=True, slots=True, kw_only=True)
class MeasuredEngine:
    """A model that is ready to run.

    Attributes:
        model: What was decided for it.
        runner: Runs its steps.
        cost: What it asks for.
        limits: Of the device.
    """

    model: PreparedModel
    runner: StepRunner
    cost: ModelCost
    limits: Limits

    @property
    def block_size(self) -> int:
        """Tokens in a block."""
        return self.model.limits.cache_config.block_size

    def answer(self, rows: Sequence[WorkloadRow]) -> dict[str, float]:
        """Answers all rows once, and says how fast.

        Raises:
            AssertionError: An answer is not as long as it has to be.
        """
        lengths: dict[str, int] = {}
        steps: list[StepStats] = []
        start = time.perf_counter()
        core = self._core_with(rows)
        while core.num_unfinished:
            for output in core.step():
                lengths[output.request_id] = len(output.outputs[0].token_ids)
            steps += core.last_steps
        seconds = time.perf_counter() - start
        core.close()
        assert [lengths[str(i)] for i in range(len(rows))] == [row.max_tokens for row in rows]
        num_output_tokens = sum(row.max_tokens for row in rows)
        num_prompt_tokens = sum(len(row.prompt_token_ids) for row in rows)
        least = least_seconds_of_steps(self.cost, self.limits, steps, block_size=self.block_size)
        return {
            "seconds": seconds,
            "output_tokens_per_second": num_output_tokens / seconds,
            "total_tokens_per_second": (num_output_tokens + num_prompt_tokens) / seconds,
            "share_of_roofline": least / seconds,
        }

    def trace(self, rows: Sequence[WorkloadRow], *, first_step: int) -> dict[str, float]:
        """Tells which share of some steps the device waits, once it is busy with many rows."""
        core = self._core_with(rows)
        for _ in range(first_step):
            core.step()

        def steps() -> None:
            for _ in range(_NUM_TRACED_STEPS):
                core.step()

        share = idle_share(traced_spans(steps, self.model.device))
        core.close()
        return {} if share is None else {"idle_share": share}

    def decode(self, *, num_requests: int, position: int) -> dict[str, float]:
        """Times steps of one token for each of many requests that have come equally far."""
        seconds = self._step_seconds(num_requests, start=position, length=1)
        num_bytes = self.cost.step_bytes(num_cached_tokens=num_requests * (position + 1))
        rate = num_bytes / seconds
        return {"seconds": seconds, "share_of_copy": rate / self.limits.copy_bytes_per_second}

    def prefill(self, *, num_requests: int, length: int) -> dict[str, float]:
        """Times steps that compute whole prompts, causal attention among the operations."""
        seconds = self._step_seconds(num_requests, start=0, length=length)
        flops = self.cost.step_flops(
            num_tokens=num_requests * length,
            num_logits=num_requests,
            num_pairs=num_requests * length * (length + 1) // 2,
        )
        rate = flops / seconds
        return {"seconds": seconds, "share_of_matrix": rate / self.limits.matrix_flops_per_second}

    def _core_with(self, rows: Sequence[WorkloadRow]) -> EngineCore:
        limits = self.model.limits
        core = EngineCore(
            executor=queue_for(
                self.runner,
                limits.scheduler_config.npu_queue_limit,
                device_type=self.model.device.type,
            ),
            tokenizer=Tokenizer.from_engine_args(self.model.args),
            limits=limits,
        )
        for index, row in enumerate(rows):
            core.add(_prompt(index, row))
        return core

    def _step_seconds(self, num_requests: int, *, start: int, length: int) -> float:
        """Returns the middle one of many times; requests share blocks if there are too few."""
        blocks_of_each = -(-(start + length) // self.block_size)
        num_blocks = self.model.limits.cache_config.num_blocks
        shares = tuple(
            ScheduledRequest(
                request_id=index,
                token_ids=tuple(3 + (index + offset) % 1000 for offset in range(length)),
                start_position=start,
                block_ids=tuple(
                    (index * blocks_of_each + block) % num_blocks for block in range(blocks_of_each)
                ),
                sampling=_GREEDY,
            )
            for index in range(num_requests)
        )
        step = SchedulerOutput(requests=shares, counts=NO_COUNTS)
        self.runner.launch(step).result()  # what is compiled and recorded on first use
        finish(self.model.device)
        running = self.runner.launch(step)
        times = []
        begin = time.perf_counter()
        for _ in range(_NUM_STEPS):
            following = self.runner.launch(step)  # as the engine does, with two steps in flight
            running.result()
            running = following
            end = time.perf_counter()
            times.append(end - begin)
            begin = end
        running.result()
        return statistics.median(times)


def load(
    path: Path, limits: Limits, *, device: str, settings: Sequence[str] = _SETTINGS
) -> MeasuredEngine:
    """Loads a checkpoint as `furiosa-llm run` does, in this process."""
    args = engine_args(str(path), (f"devices={device}", *settings))
    model = prepare_model(args, device=device)
    return MeasuredEngine(
        model=model,
        runner=model.make_runner(),
        cost=ModelCost.of(config_of(path), weight_bytes=_WEIGHT_BYTES[args.quantization]),
        limits=limits,
    )


def measure(
    engine: MeasuredEngine, rows: Sequence[WorkloadRow], *, measures_steps: bool
) -> Mapping[str, Mapping[str, float]]:
    """Answers the rows, and runs steps of one kind if asked for.

    As a warm-up it gives short answers to as many rows as run at once: when they end one after the
    other, what is compiled or recorded on first use has been used.
    """
    first = [
        dataclasses.replace(row, max_tokens=row.max_tokens // _WARM_UP_SHARE + 1)
        for row in rows[:NUM_DECODING]
    ]
    engine.answer(first)
    found = {"requests": engine.answer(rows)}
    if measures_steps:
        found["trace"] = engine.trace(rows, first_step=_FIRST_TRACED_STEP)
        found["decode"] = engine.decode(num_requests=NUM_DECODING, position=DECODE_POSITION)
        found["prefill"] = engine.prefill(num_requests=NUM_PREFILLED, length=PREFILL_LENGTH)
    return found


def _prompt(index: int, row: WorkloadRow) -> TokenizedPrompt:
    return TokenizedPrompt(
        request_id=str(index),
        text=None,
        prompt_token_ids=row.prompt_token_ids,
        sampling_params=SamplingParams(
            temperature=0,
            ignore_eos=True,
            max_tokens=row.max_tokens,
            output_kind=RequestOutputKind.FINAL,
        ),
        max_tokens=row.max_tokens,
        arrival_time=time.monotonic(),
    )


def main() -> None:
    """Measures what the command line asks for."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("checkpoint", type=Path)
    parser.add_argument("workload", choices=WORKLOADS)
    parser.add_argument("--limits", required=True, type=json.loads)
    parser.add_argument("--device", default="cuda:0")
    parser.add_argument("--steps", action="store_true", help="measure single steps, too")
    parser.add_argument("--set", action="append", default=[], metavar="NAME=VALUE")
    args = parser.parse_args()
    engine = load(
        args.checkpoint,
        Limits(**args.limits),
        device=args.device,
        settings=(*_SETTINGS, *args.set),
    )
    print(
        f"{torch.cuda.get_device_name() if torch.cuda.is_available() else 'no GPU'}, "
        f"{engine.model.limits.cache_config.num_blocks} blocks"
    )
    rows = list(make_workload(args.workload))
    print(json.dumps(measure(engine, rows, measures_steps=args.steps)), flush=True)


if __name__ == "__main__":
    main()
