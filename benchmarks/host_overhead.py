"""Measures what the host does for each step, with a model that computes nothing.

    python -m benchmarks.host_overhead --num-requests 256

On a GPU the host prepares a step while the device runs the one before; a step that takes the host
longer than the device leaves the device idle. Everything but the model is that of the engine: the
scheduler, the numbers of a step, graphs that are brought into shape, the choice of tokens, which
here runs on the CPU, and the outputs. One thread, with two steps in flight.
"""

from __future__ import annotations

import argparse
import statistics
import time

import torch

from furiosa_llm.engine_core import EngineCore
from furiosa_llm.engine_limits import CacheConfig, EngineLimits, ModelInfo
from furiosa_llm.execution.decode_graphs import DecodeGraphs, Work, default_shapes
from furiosa_llm.execution.grammar_masks import GrammarMasks
from furiosa_llm.execution.grammars import Grammars
from furiosa_llm.execution.input_batch import InputBatch
from furiosa_llm.execution.model_runner import ModelRunner
from furiosa_llm.execution.step_queue import LaunchingExecutor
from furiosa_llm.execution.token_chooser import TokenChooser
from furiosa_llm.request import TokenizedPrompt
from furiosa_llm.sampling_params import RequestOutputKind, SamplingParams
from furiosa_llm.scheduler_config import SchedulerConfig
from furiosa_llm.tokenization import Tokenizer

_CPU = torch.device("cpu")
_VOCAB_SIZE = 256
_CONTEXT = 8192
_BLOCK_SIZE = 32
_PROMPT = tuple(range(2, 200))


class NoModel:
    """Says the same of every token."""

    def __call__(self, batch: InputBatch) -> torch.Tensor:
        """Returns logits, [S, V]."""
        return torch.zeros(len(batch.logits_indices), _VOCAB_SIZE)


class NoRecorder:
    """Does work again in place of recording it."""

    def record(self, work: Work) -> Work:
        """Does the work, and returns it."""
        work()
        return work


def make_core(num_requests: int, *, num_steps: int) -> EngineCore:
    """Returns an engine with so many requests, none of which ends within `num_steps` steps."""
    num_blocks = num_requests * -(-(len(_PROMPT) + num_steps) // _BLOCK_SIZE)
    limits = EngineLimits(
        scheduler_config=SchedulerConfig(
            npu_queue_limit=2,
            is_offline=True,
            max_num_seqs=num_requests,
            max_num_batched_tokens=max(_CONTEXT, num_requests),
        ),
        cache_config=CacheConfig(num_blocks=num_blocks, block_size=_BLOCK_SIZE),
        model_info=ModelInfo(
            max_model_len=_CONTEXT, vocab_size=_VOCAB_SIZE, eos_token_ids=frozenset()
        ),
    )
    runner = ModelRunner(
        NoModel(),  # type: ignore[arg-type]  # it is called likewise
        TokenChooser(GrammarMasks(Grammars(_no_tokenizer, limits.model_info))),
        block_size=_BLOCK_SIZE,
        num_steps_in_flight=2,
        device=_CPU,
        graphs=DecodeGraphs(
            NoRecorder(),
            default_shapes(max_num_seqs=num_requests, max_model_len=_CONTEXT),
            block_size=_BLOCK_SIZE,
            scratch_block=num_blocks,
            device=_CPU,
        ),
    )
    core = EngineCore(executor=LaunchingExecutor(runner), tokenizer=_no_tokenizer(), limits=limits)
    params = SamplingParams(
        temperature=0, max_tokens=num_steps, output_kind=RequestOutputKind.FINAL
    )
    for index in range(num_requests):
        core.add(
            TokenizedPrompt(
                request_id=str(index),
                text=None,
                prompt_token_ids=_PROMPT,
                sampling_params=params,
                max_tokens=num_steps,
                arrival_time=0.0,
            )
        )
    return core


def measure(num_requests: int, *, num_steps: int) -> list[float]:
    """Returns the seconds of each step in which every request has a token."""
    core = make_core(num_requests, num_steps=num_steps + 64)
    seconds: list[float] = []
    while len(seconds) < num_steps:
        start = time.perf_counter()
        core.step()
        elapsed = time.perf_counter() - start
        if sum(step.num_decode_tokens for step in core.last_steps) == num_requests:
            seconds.append(elapsed)
    core.close()
    return seconds


def _no_tokenizer() -> Tokenizer:
    return None  # type: ignore[return-value]  # nothing is decoded before an answer ends


def main() -> None:
    """Measures, and prints milliseconds."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--num-requests", type=int, nargs="+", default=[1, 16, 64, 256])
    parser.add_argument("--num-steps", type=int, default=300)
    args = parser.parse_args()
    torch.set_num_threads(1)
    for num_requests in args.num_requests:
        seconds = sorted(measure(num_requests, num_steps=args.num_steps))
        tenth = seconds[len(seconds) // 10]
        median = statistics.median(seconds)
        print(
            f"{num_requests} requests: {1e3 * median:.2f} ms a step, "
            f"{1e3 * tenth:.2f} in the fastest tenth"
        )


if __name__ == "__main__":
    main()
