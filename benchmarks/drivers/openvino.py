"""Times OpenVINO GenAI's continuous batching on a GGUF file.

    python -m benchmarks.drivers.openvino MODEL.gguf WORKLOAD.jsonl

OpenVINO reads GGUF weights in float16 and Q8_0, not in float32.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import numpy as np
import openvino
import openvino_genai

from benchmarks.drivers.common import Answers, Task, measure, read_task
from benchmarks.workloads import WorkloadRow


def main() -> None:
    """Loads the model and answers the workload."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--max-num-batched-tokens", type=int, default=1024)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--cache-gib", type=int, default=4)
    parser.add_argument("--prefix-caching", action="store_true")
    parser.add_argument("--whole-prompts", action="store_true", help="never split a prompt")
    parser.add_argument("--precision", default="f32", help="type of the computation")
    parser.add_argument("--kv-cache-precision", default="f32")
    parser.add_argument(
        "--property", action="append", default=[], metavar="NAME=VALUE", help="of OpenVINO's CPU"
    )
    task = read_task(parser)
    pipeline = load(task)

    def generate(rows: Sequence[WorkloadRow]) -> Answers:
        inputs = [openvino.Tensor(np.array([row.prompt_token_ids], np.int64)) for row in rows]
        results = pipeline.generate(inputs, [_generation_config(row) for row in rows])
        return [list(result.m_generation_ids[0]) for result in results]

    measure(task, generate, packages=["openvino-genai", "openvino"])


def load(task: Task) -> openvino_genai.ContinuousBatchingPipeline:
    """Builds the pipeline that the task's options ask for."""
    args = task.args
    scheduler = openvino_genai.SchedulerConfig()
    scheduler.cache_size = args.cache_gib
    scheduler.max_num_batched_tokens = args.max_num_batched_tokens
    scheduler.max_num_seqs = args.max_num_seqs
    scheduler.dynamic_split_fuse = not args.whole_prompts
    scheduler.enable_prefix_caching = args.prefix_caching
    properties = {
        "INFERENCE_PRECISION_HINT": args.precision,
        "KV_CACHE_PRECISION": args.kv_cache_precision,
        **dict(entry.split("=", 1) for entry in args.property),
    }
    return openvino_genai.ContinuousBatchingPipeline(task.model, scheduler, "CPU", properties)


def _generation_config(row: WorkloadRow) -> openvino_genai.GenerationConfig:
    config = openvino_genai.GenerationConfig()
    config.max_new_tokens = config.min_new_tokens = row.max_tokens
    config.ignore_eos = True
    config.do_sample = False
    return config


if __name__ == "__main__":
    main()
