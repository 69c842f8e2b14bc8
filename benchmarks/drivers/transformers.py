"""Times transformers: `generate` in batches of similar length, or its continuous batching.

python -m benchmarks.drivers.transformers CHECKPOINT WORKLOAD.jsonl --mode generate
"""

from __future__ import annotations

import argparse
from collections.abc import Sequence

import torch
from transformers import AutoModelForCausalLM, GenerationConfig, PreTrainedModel

from benchmarks.drivers.common import Answers, measure, read_task
from benchmarks.workloads import WorkloadRow

_ATTENTION = {"generate": "sdpa", "continuous": "paged|sdpa"}


def main() -> None:
    """Loads the model and answers the workload."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--mode", choices=_ATTENTION, default="generate")
    parser.add_argument("--batch-size", type=int, default=32, help="of generate")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cpu")
    task = read_task(parser)
    torch.set_grad_enabled(False)
    model = AutoModelForCausalLM.from_pretrained(
        task.model, dtype=task.args.dtype, attn_implementation=_ATTENTION[task.args.mode]
    )
    model = model.eval().to(task.args.device)

    def generate(rows: Sequence[WorkloadRow]) -> Answers:
        if task.args.mode == "continuous":
            return _answer_continuously(model, rows)
        return _answer_in_batches(model, rows, task.args.batch_size)

    measure(task, generate, packages=["transformers", "torch"])


def _answer_in_batches(
    model: PreTrainedModel, rows: Sequence[WorkloadRow], batch_size: int
) -> Answers:
    """Answers rows that ask for about as many tokens together: none waits long for another."""
    order = sorted(range(len(rows)), key=lambda index: rows[index].max_tokens)
    answers: Answers = [[] for _ in rows]
    for start in range(0, len(order), batch_size):
        indices = order[start : start + batch_size]
        batch = [rows[index] for index in indices]
        for index, answer in zip(indices, _generate(model, batch), strict=True):
            answers[index] = answer
    return answers


def _generate(model: PreTrainedModel, rows: Sequence[WorkloadRow]) -> Answers:
    width = max(len(row.prompt_token_ids) for row in rows)
    num_steps = max(row.max_tokens for row in rows)
    pads = [width - len(row.prompt_token_ids) for row in rows]
    token_ids = [[0] * pad + row.prompt_token_ids for pad, row in zip(pads, rows, strict=True)]
    output = model.generate(
        input_ids=torch.tensor(token_ids, device=model.device),  # [R, S]
        attention_mask=torch.tensor(
            [[0] * pad + [1] * (width - pad) for pad in pads], device=model.device
        ),
        max_new_tokens=num_steps,
        min_new_tokens=num_steps,
        do_sample=False,
    )
    return [
        answer[: row.max_tokens]
        for answer, row in zip(output[:, width:].tolist(), rows, strict=True)
    ]


def _answer_continuously(model: PreTrainedModel, rows: Sequence[WorkloadRow]) -> Answers:
    config = GenerationConfig(max_new_tokens=1, do_sample=False, eos_token_id=-1, pad_token_id=0)
    manager = model.init_continuous_batching(generation_config=config)
    manager.start()
    indices = {
        manager.add_request(row.prompt_token_ids, max_new_tokens=row.max_tokens): index
        for index, row in enumerate(rows)
    }
    answers: Answers = [[] for _ in rows]
    while indices:
        result = manager.get_result(timeout=5)
        if result is None and not manager.is_running():
            raise SystemExit("continuous batching ended before it had answered all")
        if result is not None and result.is_finished():
            answers[indices.pop(result.request_id)] = result.generated_tokens
    manager.stop(block=True)
    return answers


if __name__ == "__main__":
    main()
