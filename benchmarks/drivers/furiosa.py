"""Times our own engine.

    python -m benchmarks.drivers.furiosa CHECKPOINT WORKLOAD.jsonl --set data_parallel_size=2

The clock runs from the first `add_request` to the last answer.
"""

from __future__ import annotations

import argparse
import dataclasses
from collections.abc import Sequence

from benchmarks.drivers.common import Answers, measure, read_task
from benchmarks.workloads import WorkloadRow
from furiosa_llm import EngineArgs, LLMEngine, RequestOutputKind, SamplingParams
from furiosa_llm.config import default_cache_dir
from furiosa_llm.library_imports.quick_torch import hasten_torch
from furiosa_llm.library_imports.quick_transformers import hasten_transformers
from furiosa_llm.options import options_of


def main() -> None:
    """Loads the model and answers the workload."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument(
        "--set",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="an engine option, as enable_prefix_caching=False",
    )
    task = read_task(parser)
    hasten_torch()  # this process is the driver's own, as that of `furiosa-llm` is
    hasten_transformers(default_cache_dir())
    engine = LLMEngine.from_engine_args(
        engine_args(task.model, task.args.set), num_prompts=len(task.rows)
    )

    def generate(rows: Sequence[WorkloadRow]) -> Answers:
        return answer_all(engine, rows)

    try:
        measure(task, generate, packages=["furiosa-llm-cli", "torch", "transformers", "numba"])
    finally:
        engine.shutdown()


def engine_args(model: str, settings: Sequence[str]) -> EngineArgs:
    """Returns the options of the engine, offline unless the settings say otherwise.

    Args:
        model: A checkpoint.
        settings: As `max_num_seqs=64`; they are read as the command line reads them.
    """
    flags = {entry.name: entry.is_flag for entry in options_of(EngineArgs)}
    words = [f"--model={model}"]
    for setting in ("devices=cpu", "is_offline=True", *settings):
        name, _, value = setting.partition("=")
        option = name.replace("_", "-")
        if not flags.get(name, False):
            words.append(f"--{option}={value}")
        else:
            words.append(f"--{option}" if value.lower() == "true" else f"--no-{option}")
    parser = EngineArgs.add_cli_args(argparse.ArgumentParser())
    return EngineArgs.from_cli_args(parser.parse_args(words))


def answer_all(engine: LLMEngine, rows: Sequence[WorkloadRow]) -> Answers:
    """Answers rows, in their order."""
    params = SamplingParams(temperature=0, ignore_eos=True, output_kind=RequestOutputKind.FINAL)
    max_unfinished = engine.limits.scheduler_config.max_processing_samples
    answers: Answers = [[] for _ in rows]
    num_added = 0
    while num_added < len(rows) or engine.has_unfinished_requests():
        while num_added < len(rows) and engine.num_unfinished_requests < max_unfinished:
            row = rows[num_added]
            engine.add_request(
                str(num_added),
                {"prompt_token_ids": row.prompt_token_ids},
                dataclasses.replace(params, max_tokens=row.max_tokens),
            )
            num_added += 1
        for output in engine.step():
            answers[int(output.request_id)] = list(output.outputs[0].token_ids)
    return answers


if __name__ == "__main__":
    main()
