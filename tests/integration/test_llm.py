"""`LLM` on the embedded model: answers in order, errors by index, and what is left after them."""

from __future__ import annotations

import dataclasses
import os
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from furiosa_llm.config import EngineArgs
from furiosa_llm.engine_options import EngineOptions
from furiosa_llm.errors import EngineError, InvalidRowError, NeverFitsError, PromptTooLongError
from furiosa_llm.llm import LLM
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.outputs import RequestOutput
from furiosa_llm.sampling_params import RequestOutputKind, SamplingParams

MODEL = Path(__file__).parents[2] / "samples" / "tiny-llama"
GREEDY = SamplingParams(temperature=0, max_tokens=24)
SUMS = {"What is 2 + 3?": "5", "What is 10 + 20?": "30", "What is 7 + 2?": "9"}


@pytest.fixture(scope="module")
def llm() -> Iterator[LLM]:
    with LLM(MODEL, paged_attention_num_blocks=64) as llm:
        yield llm


def texts(outputs: Sequence[RequestOutput]) -> list[str]:
    return [output.outputs[0].text for output in outputs]


def assert_usable(llm: LLM) -> None:
    assert texts(llm.generate(list(SUMS), GREEDY, use_tqdm=False)) == list(SUMS.values())


def after_steps(
    monkeypatch: pytest.MonkeyPatch, num_steps: int, act: Callable[[], object]
) -> list[int]:
    """Does something at the end of a step. Returns a list that gets an entry for each step."""
    steps: list[int] = []
    step = LLMEngine.step

    def watched(engine: LLMEngine) -> list[RequestOutput]:
        outputs = step(engine)
        steps.append(len(outputs))
        if len(steps) == num_steps:
            act()
        return outputs

    monkeypatch.setattr(LLMEngine, "step", watched)
    return steps


def test_the_keywords_are_the_fields_of_engine_args() -> None:
    fields = get_type_hints(EngineArgs)

    assert fields.pop("model") is str
    assert get_type_hints(EngineOptions) == fields


def test_an_llm_is_offline_unless_told_otherwise(monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[EngineArgs] = []
    monkeypatch.setattr(LLMEngine, "from_engine_args", seen.append)

    LLM(MODEL, max_num_seqs=3)
    LLM(str(MODEL), is_offline=False)
    LLM.from_engine_args(EngineArgs(model=str(MODEL), devices="cpu:0"))

    expected = EngineArgs(model=str(MODEL), is_offline=True)
    assert seen == [
        dataclasses.replace(expected, max_num_seqs=3),
        dataclasses.replace(expected, is_offline=False),
        dataclasses.replace(expected, devices="cpu:0"),
    ]


def test_answers_come_in_the_order_of_the_prompts(llm: LLM) -> None:
    long_ago = SamplingParams(temperature=0, max_tokens=200, ignore_eos=True)
    params = [long_ago, GREEDY, GREEDY]

    outputs = llm.generate(list(SUMS), params, use_tqdm=False)

    assert [output.prompt for output in outputs] == list(SUMS)
    assert texts(outputs)[1:] == ["30", "9"]
    assert outputs[0].num_output_tokens == 200
    assert all(output.finished for output in outputs)


@pytest.mark.parametrize("kind", list(RequestOutputKind))
def test_every_output_kind_brings_the_whole_answer(llm: LLM, kind: RequestOutputKind) -> None:
    params = dataclasses.replace(GREEDY, output_kind=kind)

    assert texts(llm.generate(list(SUMS), params, use_tqdm=False)) == list(SUMS.values())


def test_a_prompt_may_be_text_or_a_mapping_of_text_or_tokens(llm: LLM) -> None:
    text = "What is 2 + 3?"
    token_ids = llm.generate(text, GREEDY, use_tqdm=False)[0].prompt_token_ids

    outputs = llm.generate(
        [text, {"prompt": text}, {"prompt_token_ids": token_ids}], GREEDY, use_tqdm=False
    )

    assert [output.prompt for output in outputs] == [text, text, None]
    assert [output.prompt_token_ids for output in outputs] == [token_ids] * 3
    assert texts(outputs) == ["5", "5", "5"]


def test_no_prompts_have_no_answers(llm: LLM) -> None:
    assert llm.generate([]) == []
    assert llm.chat([]) == []


def test_the_default_parameters_draw_16_tokens(llm: LLM) -> None:
    output = llm.generate("hello", use_tqdm=False)[0]

    assert 1 <= output.num_output_tokens <= 16


def test_a_call_that_is_repeated_draws_the_same_answers(llm: LLM) -> None:
    params = SamplingParams(temperature=1.5, n=2, max_tokens=12, ignore_eos=True)

    first, second = (llm.generate(["hello", "hello"], params, use_tqdm=False) for _ in range(2))

    assert [output.outputs for output in first] == [output.outputs for output in second]
    assert first[0].outputs[0].token_ids != first[1].outputs[0].token_ids


def test_parameters_of_another_number_than_the_prompts_are_refused(llm: LLM) -> None:
    with pytest.raises(ValueError, match="there are 3 prompts but 2 sampling_params"):
        llm.generate(list(SUMS), [GREEDY, GREEDY])


@pytest.mark.parametrize(
    ("prompt", "error", "message"),
    [
        ({"prompt_token_ids": []}, InvalidRowError, "prompt 1: the prompt is empty"),
        (7, InvalidRowError, "prompt 1: a prompt must be a text, .* got 7"),
        ("\ud800", InvalidRowError, "prompt 1: the prompt is no Unicode text"),
        ({"prompt_token_ids": [-1]}, InvalidRowError, "prompt 1: token id -1 is not in"),
        ({"prompt_token_ids": [5] * 1000}, PromptTooLongError, "prompt 1: This model's maximum"),
    ],
)
def test_a_prompt_that_cannot_be_answered_is_named_before_any_work(
    llm: LLM, monkeypatch: pytest.MonkeyPatch, prompt: Any, error: type[Exception], message: str
) -> None:
    steps = after_steps(monkeypatch, 0, lambda: None)

    with pytest.raises(error, match=f"^{message}"):
        llm.generate(["What is 2 + 3?", prompt, "What is 7 + 2?"], GREEDY)

    assert steps == []
    assert_usable(llm)


def test_a_prompt_that_never_fits_the_cache_is_named_too() -> None:
    with (
        LLM(MODEL, paged_attention_num_blocks=2, paged_attention_block_size=16) as llm,
        pytest.raises(NeverFitsError, match=r"^prompt 1: .* but the cache has 2"),
    ):
        llm.generate(["hello", {"prompt_token_ids": [5] * 30}], GREEDY)


def test_as_many_parameters_as_conversations_are_asked_for_before_any_is_looked_at(
    llm: LLM,
) -> None:
    with pytest.raises(ValueError, match="there are 2 prompts but 3 sampling_params"):
        llm.chat([[{"role": "user", "content": "hello"}], []], [GREEDY] * 3)


def test_an_engine_takes_more_prompts_than_it_may_hold() -> None:
    args = EngineArgs(model=str(MODEL), paged_attention_num_blocks=64, max_processing_samples=2)
    engine = LLMEngine.from_engine_args(args)
    try:
        for prompt in SUMS:
            engine.add_request(prompt, prompt, dataclasses.replace(GREEDY, max_tokens=16))
        num_waiting = []
        answers: dict[str, str] = {}
        while engine.has_unfinished_requests():
            outputs = engine.step()
            num_waiting += [step.num_running + step.num_waiting for step in engine.last_steps]
            answers |= {output.request_id: output.outputs[0].text for output in outputs}
    finally:
        engine.shutdown()

    assert answers == SUMS
    assert max(num_waiting) <= 2


def test_more_prompts_than_the_engine_holds_are_fed_bit_by_bit(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    held: list[int] = []
    with LLM(MODEL, paged_attention_num_blocks=64, max_processing_samples=2) as llm:
        engine = llm._engine
        after_steps(monkeypatch, 0, lambda: None)
        step = LLMEngine.step

        def watched(engine: LLMEngine) -> list[RequestOutput]:
            held.append(engine.num_unfinished_requests)
            return step(engine)

        monkeypatch.setattr(LLMEngine, "step", watched)
        outputs = llm.generate(list(SUMS) * 3, GREEDY, use_tqdm=False)

    assert texts(outputs) == list(SUMS.values()) * 3
    assert max(held) == 2
    assert engine.num_unfinished_requests == 0


@pytest.mark.parametrize("n", [1, 3])
def test_progress_counts_prompts_on_standard_error_up_to_the_last(
    llm: LLM, capsys: pytest.CaptureFixture[str], n: int
) -> None:
    llm.generate(list(SUMS), SamplingParams(n=n, max_tokens=4))

    captured = capsys.readouterr()
    assert captured.out == ""
    last = captured.err.strip().rsplit("\r", 1)[-1]
    assert last.startswith("answering: 100%|")
    assert " 3/3 " in last


def test_progress_may_be_left_out(llm: LLM, capsys: pytest.CaptureFixture[str]) -> None:
    llm.generate(list(SUMS), GREEDY, use_tqdm=False)

    assert capsys.readouterr().err == ""


def test_a_chat_goes_through_the_template(llm: LLM) -> None:
    conversation = [{"role": "user", "content": "What is 2 + 3?"}]
    other = [{"role": "user", "content": "What is 10 + 20?"}]

    one = llm.chat(conversation, GREEDY, use_tqdm=False)
    two = llm.chat([conversation, other], GREEDY, use_tqdm=False)

    tokenizer = llm._engine.tokenizer
    assert texts(one) == ["5"]
    assert texts(two) == ["5", "30"]
    assert one[0].prompt == tokenizer.render_chat(conversation)
    assert one[0].prompt_token_ids == tokenizer.encode_rendered(tokenizer.render_chat(conversation))
    assert one[0].prompt_token_ids.count(one[0].prompt_token_ids[0]) == 1  # one BOS


@pytest.mark.parametrize("conversation", ["hello", [], [{"role": "user"}, "hello"]])
def test_a_conversation_that_is_none_is_named(llm: LLM, conversation: Any) -> None:
    right = [{"role": "user", "content": "What is 2 + 3?"}]

    with pytest.raises(InvalidRowError, match=r"^prompt 1: a conversation must be a list of"):
        llm.chat([right, conversation], GREEDY)


def test_ctrl_c_waits_for_the_step_and_gives_the_prompts_up(
    llm: LLM, monkeypatch: pytest.MonkeyPatch
) -> None:
    handler = signal.getsignal(signal.SIGINT)
    with monkeypatch.context() as patched:
        steps = after_steps(patched, 2, lambda: os.kill(os.getpid(), signal.SIGINT))

        with pytest.raises(KeyboardInterrupt):
            llm.generate(list(SUMS), dataclasses.replace(GREEDY, ignore_eos=True))

    assert len(steps) == 2
    assert signal.getsignal(signal.SIGINT) is handler
    assert llm._engine.num_unfinished_requests == 0
    assert_usable(llm)


def test_a_second_ctrl_c_breaks_off_the_step_and_the_engine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def press_twice() -> None:
        for _ in range(2):
            os.kill(os.getpid(), signal.SIGINT)

    with LLM(MODEL, paged_attention_num_blocks=64) as llm:
        core = llm._engine._core
        monkeypatch.setattr(core, "step", press_twice)

        with pytest.raises(KeyboardInterrupt):
            llm.generate("hello", GREEDY)
        with pytest.raises(EngineError, match="the engine broke: KeyboardInterrupt; make a new"):
            llm.generate("hello", GREEDY)


def test_an_engine_that_broke_says_why(monkeypatch: pytest.MonkeyPatch) -> None:
    def fail() -> None:
        raise EngineError("step 0 failed: out of memory")

    with LLM(MODEL, paged_attention_num_blocks=64) as llm:
        monkeypatch.setattr(llm._engine._core, "step", fail)

        with pytest.raises(EngineError, match=r"^step 0 failed: out of memory$"):
            llm.generate(list(SUMS), GREEDY)
        with pytest.raises(EngineError, match=r"^the engine broke: step 0 failed: out of memory; "):
            llm.generate(list(SUMS), GREEDY)


def test_a_finished_llm_says_that_it_is() -> None:
    with LLM(MODEL, paged_attention_num_blocks=64) as llm:
        pass

    llm.shutdown()
    with pytest.raises(EngineError, match="the engine was shut down; make a new one"):
        llm.generate("hello", GREEDY)


def test_calls_from_several_threads_wait_for_each_other(llm: LLM) -> None:
    answers: dict[str, list[str]] = {}

    def ask(prompt: str) -> None:
        answers[prompt] = texts(llm.generate([prompt] * 4, GREEDY, use_tqdm=False))

    threads = [threading.Thread(target=ask, args=(prompt,)) for prompt in SUMS]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert answers == {prompt: [answer] * 4 for prompt, answer in SUMS.items()}
