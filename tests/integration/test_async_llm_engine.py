"""`AsyncLLMEngine` on the embedded model: many readers, their errors, and what they leave."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import threading
from collections.abc import AsyncIterator, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import aclosing, asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from furiosa_llm.async_llm_engine import AsyncLLMEngine
from furiosa_llm.config import EngineArgs
from furiosa_llm.errors import EngineError, RequestError
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.outputs import RequestOutput
from furiosa_llm.sampling_params import RequestOutputKind, SamplingParams

MODEL = str(Path(__file__).parents[2] / "samples" / "tiny-llama")
SUMS = {"What is 2 + 3?": "5", "What is 10 + 20?": "30", "What is 7 + 2?": "9"}
GREEDY = SamplingParams(temperature=0, max_tokens=24)
LONG = SamplingParams(temperature=0, max_tokens=150, ignore_eos=True)
WAIT_SECONDS = 60


def load() -> LLMEngine:
    return LLMEngine.from_engine_args(EngineArgs(model=MODEL, paged_attention_num_blocks=64))


@pytest.fixture
def core() -> Iterator[LLMEngine]:
    """The engine within; tests look at it from outside its thread, and never call it."""
    engine = load()
    yield engine
    engine.shutdown()


async def last_of(outputs: AsyncIterator[RequestOutput]) -> RequestOutput:
    last = None
    async for output in outputs:
        last = output
    assert last is not None
    return last


async def text_of(engine: AsyncLLMEngine, prompt: str, name: str) -> str:
    return (await last_of(engine.generate(prompt, GREEDY, name))).outputs[0].text


async def until_idle(core: LLMEngine) -> None:
    async with asyncio.timeout(WAIT_SECONDS):
        while core.has_unfinished_requests():
            await asyncio.sleep(0.001)


@asynccontextmanager
async def begun(engine: AsyncLLMEngine, name: str) -> AsyncIterator[AsyncIterator[RequestOutput]]:
    """A long request whose first output has come."""
    async with aclosing(engine.generate("hello", LONG, name)) as outputs:
        await anext(outputs)
        yield outputs


def test_many_requests_at_once_are_answered_each_to_its_reader(core: LLMEngine) -> None:
    async def main() -> None:
        async with AsyncLLMEngine(core) as engine:
            prompts = list(SUMS) * 4
            answers = await asyncio.gather(
                *(text_of(engine, prompt, str(index)) for index, prompt in enumerate(prompts))
            )
        assert answers == list(SUMS.values()) * 4

    asyncio.run(main())


@pytest.mark.parametrize("is_slow", [False, True])
@pytest.mark.parametrize("kind", list(RequestOutputKind))
def test_each_output_kind_tells_the_whole_answer_to_fast_and_slow_readers(
    core: LLMEngine, kind: RequestOutputKind, *, is_slow: bool
) -> None:
    params = SamplingParams(temperature=0, max_tokens=40, ignore_eos=True, output_kind=kind)

    async def main() -> list[RequestOutput]:
        async with AsyncLLMEngine(core) as engine:
            outputs = []
            async for output in engine.generate("hello", params, "0"):
                outputs.append(output)
                if is_slow:
                    await until_idle(core)
            return outputs

    outputs = asyncio.run(main())

    assert [output.finished for output in outputs] == [False] * (len(outputs) - 1) + [True]
    token_ids = [output.outputs[0].token_ids for output in outputs]
    if kind is RequestOutputKind.DELTA:
        assert [len(new) for new in token_ids] == [1] * 40
    elif kind is RequestOutputKind.CUMULATIVE:
        assert len(token_ids[-1]) == 40
        if is_slow:
            assert len(outputs) == 2
    else:
        assert [len(all_of_it) for all_of_it in token_ids] == [40]


@pytest.mark.parametrize(
    ("prompt", "name", "error", "message"),
    [
        ({"prompt_token_ids": []}, "0", RequestError, "the prompt is empty"),
        ("hello", 7, ValueError, "request_id must be a string"),
        ("hello", "open", ValueError, "'open' belongs to an unfinished request"),
    ],
)
def test_a_bad_request_fails_alone(
    core: LLMEngine, prompt: Any, name: Any, error: type[Exception], message: str
) -> None:
    async def main() -> None:
        async with AsyncLLMEngine(core) as engine, begun(engine, "open") as outputs:
            with pytest.raises(error, match=message):
                await last_of(engine.generate(prompt, GREEDY, name))
            assert (await last_of(outputs)).num_output_tokens == 150

    asyncio.run(main())


def test_breaking_out_gives_the_request_up(core: LLMEngine) -> None:
    async def main() -> None:
        async with AsyncLLMEngine(core) as engine:
            async for _ in engine.generate("hello", LONG, "0"):
                break
            await until_idle(core)
            assert await text_of(engine, "What is 2 + 3?", "0") == "5"

    asyncio.run(main())


def test_cancelling_gives_the_request_up(core: LLMEngine) -> None:
    async def main() -> None:
        async with AsyncLLMEngine(core) as engine:
            task = asyncio.create_task(last_of(engine.generate("hello", LONG, "0")))
            async with begun(engine, "other"):  # added after "0"
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
            await until_idle(core)
            assert await text_of(engine, "What is 2 + 3?", "0") == "5"

    asyncio.run(main())


def test_cancelling_before_the_engine_took_the_request_in_leaves_nothing(core: LLMEngine) -> None:
    async def main() -> None:
        async with AsyncLLMEngine(core) as engine:
            task = asyncio.create_task(last_of(engine.generate("hello", LONG, "0")))
            await asyncio.sleep(0)
            task.cancel()
            with pytest.raises(asyncio.CancelledError):
                await task
            await engine.abort("unknown")  # the thread has done all that came before
            assert not core.has_unfinished_requests()

    asyncio.run(main())


def test_a_refused_duplicate_does_not_end_the_request_of_its_name(core: LLMEngine) -> None:
    async def main() -> None:
        async with AsyncLLMEngine(core) as engine, begun(engine, "0") as outputs:
            with pytest.raises(ValueError, match="unfinished request"):
                await last_of(engine.generate("hello", GREEDY, "0"))
            await engine.abort("unknown")
            assert (await last_of(outputs)).finished

    asyncio.run(main())


def test_an_aborted_request_ends_without_more_outputs(core: LLMEngine) -> None:
    async def main() -> None:
        async with (
            AsyncLLMEngine(core) as engine,
            begun(engine, "0") as one,
            begun(engine, "1") as two,
            begun(engine, "2") as three,
        ):
            await engine.abort("0")
            await engine.abort(["1", "unknown"])
            assert not any([output.finished async for output in one])
            assert not any([output.finished async for output in two])
            assert (await last_of(three)).finished

    asyncio.run(main())


@pytest.mark.parametrize(
    ("failure", "message"),
    [
        (EngineError("step 7 failed"), "^step 7 failed$"),
        (AssertionError("a bug"), r"^the engine's thread ended: AssertionError\('a bug'\)$"),
    ],
)
def test_an_engine_that_breaks_fails_every_open_and_later_request(
    core: LLMEngine, monkeypatch: pytest.MonkeyPatch, failure: Exception, message: str
) -> None:
    def fail() -> None:
        raise failure

    async def main() -> None:
        async with (
            AsyncLLMEngine(core) as engine,
            begun(engine, "0") as one,
            begun(engine, "1") as two,
        ):
            monkeypatch.setattr(core, "step", fail)
            for outputs in (one, two, engine.generate("hello", GREEDY, "2")):
                with pytest.raises(EngineError, match=message):
                    await last_of(outputs)
            with pytest.raises(EngineError, match=message):
                await engine.abort("0")

    asyncio.run(main())


def test_shutting_down_fails_open_and_later_requests(core: LLMEngine) -> None:
    async def main() -> None:
        engine = AsyncLLMEngine(core)
        async with begun(engine, "0") as outputs:
            engine.shutdown()
            engine.shutdown()
            with pytest.raises(EngineError, match="the engine was shut down; make a new one"):
                await last_of(outputs)
            with pytest.raises(EngineError, match="the engine was shut down; make a new one"):
                await last_of(engine.generate("hello", GREEDY, "1"))

    asyncio.run(main())


def test_no_thread_is_left_behind() -> None:
    before = set(threading.enumerate())

    async def main() -> None:
        args = EngineArgs(model=MODEL, paged_attention_num_blocks=64)
        async with AsyncLLMEngine.from_engine_args(args) as engine:
            assert await text_of(engine, "What is 2 + 3?", "0") == "5"

    asyncio.run(main())

    assert {thread for thread in threading.enumerate() if thread not in before} == set()


def test_an_idle_engine_takes_no_steps(core: LLMEngine, monkeypatch: pytest.MonkeyPatch) -> None:
    num_steps = 0
    step = core.step

    def counted() -> list[RequestOutput]:
        nonlocal num_steps
        num_steps += 1
        return step()

    async def main() -> None:
        monkeypatch.setattr(core, "step", counted)
        async with AsyncLLMEngine(core) as engine:
            await text_of(engine, "What is 2 + 3?", "0")
            await engine.abort("unknown")
            taken = num_steps
            await asyncio.sleep(0.1)
            assert num_steps - taken <= 1

    asyncio.run(main())


def test_readers_of_several_event_loops_share_an_engine(core: LLMEngine) -> None:
    engine = AsyncLLMEngine(core)

    def ask(prompt: str) -> list[str]:
        async def main() -> list[str]:
            return await asyncio.gather(
                *(text_of(engine, prompt, f"{prompt} {index}") for index in range(3))
            )

        return asyncio.run(main())

    with ThreadPoolExecutor(len(SUMS)) as threads:
        answers = list(threads.map(ask, SUMS))
    engine.shutdown()

    assert answers == [[answer] * 3 for answer in SUMS.values()]


def test_a_reader_whose_loop_is_gone_does_not_trouble_others(core: LLMEngine) -> None:
    engine = AsyncLLMEngine(core)
    outputs = engine.generate("hello", LONG, "gone")
    loop = asyncio.new_event_loop()
    loop.run_until_complete(anext(outputs))
    loop.close()

    answer = asyncio.run(text_of(engine, "What is 2 + 3?", "0"))
    engine.shutdown()

    assert answer == "5"


def test_a_program_that_forgets_the_shutdown_ends_well() -> None:
    code = (
        "import asyncio, sys\n"
        "from furiosa_llm import AsyncLLMEngine, EngineArgs, SamplingParams\n"
        "engine = AsyncLLMEngine.from_engine_args(EngineArgs(model=sys.argv[1]))\n"
        "async def main():\n"
        "    params = SamplingParams(max_tokens=400, ignore_eos=True)\n"
        "    async for _ in engine.generate('hi', params, 'a'):\n"
        "        break\n"
        "asyncio.run(main())\n"
    )
    env = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}

    result = subprocess.run(
        [sys.executable, "-c", code, MODEL], capture_output=True, text=True, check=False, env=env
    )

    assert (result.returncode, result.stderr) == (0, "")
