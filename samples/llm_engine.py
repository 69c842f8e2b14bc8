"""Asks three prompts of a model, with the engine's own calls: add a request, run a step.

    python samples/llm_engine.py --model samples/tiny-llama --devices npu:0

Every option of the engine may be given; `--help` lists them.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Iterable, Iterator

from furiosa_llm import EngineArgs, FuriosaLLMError, LLMEngine, RequestOutput, SamplingParams

QUESTIONS = (
    ("A robot may not injure a human being", SamplingParams(temperature=0.0)),
    ("To be or not to be,", SamplingParams(temperature=0.8, top_k=5)),
    (
        "What is the meaning of life?",
        SamplingParams(n=1, best_of=5, temperature=0.8, top_p=0.95),
    ),
)


def answer(
    engine: LLMEngine, questions: Iterable[tuple[str, SamplingParams]]
) -> Iterator[RequestOutput]:
    """Yields finished outputs. A new request may join at every step, while others are answered."""
    names = itertools.count()
    waiting = iter(questions)
    is_waiting = True
    while is_waiting or engine.has_unfinished_requests():
        question = next(waiting, None)
        is_waiting = question is not None
        if question is not None:
            engine.add_request(str(next(names)), *question)
        yield from (output for output in engine.step() if output.finished)


def main() -> None:
    """Parses the options, loads the model and prints each answer when it is complete."""
    parser = argparse.ArgumentParser(description="Demo on using the LLMEngine class directly")
    namespace = EngineArgs.add_cli_args(parser).parse_args()
    try:
        engine = LLMEngine.from_engine_args(EngineArgs.from_cli_args(namespace))
    except FuriosaLLMError as error:
        parser.error(str(error))
    try:
        for output in answer(engine, QUESTIONS):
            print(f"{output.request_id}: {output.prompt!r} -> {output.outputs[0].text!r}")
    finally:
        engine.shutdown()


if __name__ == "__main__":
    main()
