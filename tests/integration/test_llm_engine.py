"""The engine's own interface, on a tiny random model."""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from furiosa_llm.config import EngineArgs
from furiosa_llm.errors import ConfigError, EngineError, ModelLoadError, RequestError
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.outputs import RequestOutput
from furiosa_llm.sampling_params import RequestOutputKind, SamplingParams
from tests.factories import answer_all

GREEDY = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True)


@pytest.fixture(scope="module")
def path(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("Llama")


@pytest.fixture(scope="module")
def engine(path: Path) -> LLMEngine:
    return LLMEngine.from_engine_args(EngineArgs(model=str(path), paged_attention_num_blocks=32))


def run(engine: LLMEngine) -> list[RequestOutput]:
    outputs = []
    while engine.has_unfinished_requests():
        outputs += engine.step()
    return outputs


def test_the_start_says_how_large_the_cache_is(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, logger="furiosa_llm"):
        LLMEngine.from_engine_args(EngineArgs(model=str(path), devices="cpu", max_num_seqs=2))

    assert "1 replica, on cpu, with a KV cache of 32 blocks of 32 tokens each" in caplog.text


def test_a_step_with_nothing_to_do_returns_nothing(engine: LLMEngine) -> None:
    assert engine.step() == []


def test_each_output_kind_tells_the_same_answer(engine: LLMEngine) -> None:
    texts: dict[RequestOutputKind, str] = {}
    token_ids: dict[RequestOutputKind, list[int]] = {}
    for kind in RequestOutputKind:
        params = SamplingParams(temperature=0, max_tokens=12, ignore_eos=True, output_kind=kind)
        engine.add_request(kind.value, "hello", params)
        outputs = [output.outputs[0] for output in run(engine)]
        if kind is RequestOutputKind.DELTA:
            texts[kind] = "".join(output.text for output in outputs)
            token_ids[kind] = [token for output in outputs for token in output.token_ids]
        else:
            texts[kind], token_ids[kind] = outputs[-1].text, outputs[-1].token_ids
        assert len(outputs) == (1 if kind is RequestOutputKind.FINAL else 12)

    assert len(set(texts.values())) == 1
    assert token_ids[RequestOutputKind.DELTA] == token_ids[RequestOutputKind.FINAL]
    assert len(token_ids[RequestOutputKind.FINAL]) == 12


@pytest.mark.parametrize("kind", list(RequestOutputKind))
def test_an_answer_ends_before_its_stop_string(engine: LLMEngine, kind: RequestOutputKind) -> None:
    whole = answer_all(engine, ["hello"], GREEDY)[0].outputs[0].text
    stop = whole[4:7]
    params = SamplingParams(temperature=0, max_tokens=12, stop=(stop,), output_kind=kind)

    engine.add_request("0", "hello", params)
    outputs = run(engine)

    last = outputs[-1].outputs[0]
    text = last.text
    if kind is RequestOutputKind.DELTA:
        text = "".join(output.outputs[0].text for output in outputs)
    assert text == whole[: whole.index(stop)]
    assert (last.finish_reason, last.stop_reason) == ("stop", stop)


def test_a_stop_string_that_the_last_token_completes_is_the_reason(engine: LLMEngine) -> None:
    whole = answer_all(engine, ["hello"], GREEDY)[0].outputs[0]
    length = next(i for i in range(5, 12) if len(engine_text(engine, whole.token_ids[:i])) >= 3)
    stop = engine_text(engine, whole.token_ids[:length])[-2:]
    params = SamplingParams(temperature=0, max_tokens=length, stop=(stop,))

    answer = answer_all(engine, ["hello"], params)[0].outputs[0]

    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)


def engine_text(engine: LLMEngine, token_ids: list[int]) -> str:
    return engine.tokenizer.decode(token_ids, skip_special_tokens=True)


def test_a_stop_string_can_be_kept(engine: LLMEngine) -> None:
    whole = answer_all(engine, ["hello"], GREEDY)[0].outputs[0].text
    stop = whole[4:7]
    params = SamplingParams(
        temperature=0, max_tokens=12, stop=(stop,), include_stop_str_in_output=True
    )

    text = answer_all(engine, ["hello"], params)[0].outputs[0].text

    assert text == whole[: whole.index(stop) + len(stop)]


def test_a_stop_token_ends_an_answer_and_is_not_in_its_text(engine: LLMEngine) -> None:
    whole = answer_all(engine, ["hello"], GREEDY)[0].outputs[0]
    stop = whole.token_ids[5]
    params = SamplingParams(temperature=0, max_tokens=12, stop_token_ids=(stop,), ignore_eos=True)

    answer = answer_all(engine, ["hello"], params)[0].outputs[0]

    assert (answer.finish_reason, answer.stop_reason) == ("stop", stop)
    cut = whole.token_ids.index(stop)
    assert answer.token_ids == whole.token_ids[: cut + 1]
    assert answer.text == engine.tokenizer.decode(whole.token_ids[:cut], skip_special_tokens=True)


def test_n_answers_come_in_one_output(engine: LLMEngine) -> None:
    params = SamplingParams(temperature=1.0, n=3, max_tokens=8, ignore_eos=True)

    output = answer_all(engine, ["hello"], params)[0]

    assert [answer.index for answer in output.outputs] == [0, 1, 2]
    assert len({tuple(answer.token_ids) for answer in output.outputs}) == 3
    assert output.num_output_tokens == 24


def test_no_output_comes_for_an_aborted_request(engine: LLMEngine) -> None:
    for name in ("kept", "running", "waiting"):
        engine.add_request(name, "hello", GREEDY)
    engine.step()

    engine.abort_request(["running", "waiting", "unknown"])
    outputs = run(engine)

    assert {output.request_id for output in outputs} == {"kept"}
    assert engine.last_steps[0].num_running == 1


def test_metrics_are_in_order_and_count_what_was_held(engine: LLMEngine) -> None:
    output = answer_all(engine, ["hello world " * 8], GREEDY)[0]

    metrics = output.metrics
    assert metrics.queue_s is not None
    assert metrics.ttft_s is not None
    assert metrics.tpot_s is not None
    assert metrics.e2e_s is not None
    assert 0 <= metrics.queue_s <= metrics.ttft_s <= metrics.e2e_s
    assert metrics.peak_blocks == -(-(output.num_prompt_tokens + 12 - 1) // 32)
    assert 0 < metrics.block_seconds <= metrics.peak_blocks * metrics.e2e_s


def test_without_max_tokens_an_answer_may_fill_the_context(engine: LLMEngine) -> None:
    params = SamplingParams(temperature=0, max_tokens=None, ignore_eos=True)

    output = answer_all(engine, ["hello"], params)[0]

    assert output.num_prompt_tokens + output.num_output_tokens == 512


@pytest.mark.parametrize(
    ("request_id", "prompt", "message"),
    [
        (7, "hello", "request_id must be a string"),
        (None, "hello", "request_id must be a string"),
        ("0", "", "the prompt is empty"),
        ("0", "\ud800", "the prompt is no Unicode text"),
        ("0", 5, "a prompt must be a text, .* got 5"),
        ("0", {"prompt": None, "prompt_token_ids": None}, "a prompt must be a text"),
        ("0", {"prompt_token_ids": []}, "the prompt is empty"),
        ("0", {"prompt_token_ids": [5, 300]}, "token id 300 is not in the vocabulary of 300"),
        ("0", {"prompt_token_ids": [-1]}, "token id -1 is not in the vocabulary"),
        ("0", {"prompt_token_ids": ["a"]}, "must be whole numbers"),
        ("0", {"prompt_token_ids": "abc"}, "must be a list"),
        ("0", {"text": "hello"}, "a prompt must be a text"),
        ("0", {"prompt_token_ids": [5] * 501}, "maximum context length is 512 tokens"),
    ],
)
def test_a_prompt_that_cannot_be_served_is_refused_with_a_reason(
    engine: LLMEngine, request_id: Any, prompt: Any, message: str
) -> None:
    with pytest.raises(ValueError, match=message):
        engine.add_request(request_id, prompt, GREEDY)
    if request_id == "0":
        with pytest.raises(RequestError, match=message):
            engine.check_request(prompt, GREEDY)

    assert not engine.has_unfinished_requests()


def test_a_duplicate_id_is_refused_while_the_first_is_unfinished(engine: LLMEngine) -> None:
    engine.add_request("twice", "hello", GREEDY)

    with pytest.raises(ValueError, match="'twice' belongs to an unfinished request"):
        engine.add_request("twice", "hello", GREEDY)

    run(engine)
    engine.add_request("twice", "hello", GREEDY)
    assert run(engine)[-1].finished


def test_text_beside_tokens_only_stands_in_the_outputs(engine: LLMEngine) -> None:
    engine.add_request("0", {"prompt": "said", "prompt_token_ids": [5, 6, 7]}, GREEDY)

    output = run(engine)[-1]

    assert (output.prompt, output.prompt_token_ids) == ("said", [5, 6, 7])


def test_parameters_of_another_type_are_refused(engine: LLMEngine) -> None:
    with pytest.raises(RequestError, match="sampling_params must be SamplingParams"):
        engine.add_request("0", "hello", {"top_k": 1})  # type: ignore[arg-type]

    assert not engine.has_unfinished_requests()


def test_a_checked_prompt_is_not_taken_in_and_brings_its_tokens(engine: LLMEngine) -> None:
    checked = engine.check_request("hello", GREEDY)

    assert not engine.has_unfinished_requests()
    engine.add_request("0", checked, GREEDY)
    assert run(engine)[-1].outputs == answer_all(engine, ["hello"], GREEDY)[0].outputs


def test_a_second_run_brings_the_same_answers(engine: LLMEngine) -> None:
    params = SamplingParams(temperature=1.0, max_tokens=12, ignore_eos=True, n=2)

    first, second = (answer_all(engine, ["hello", "world"], params) for _ in range(2))

    assert [output.outputs for output in first] == [output.outputs for output in second]


def test_an_engine_goes_on_after_everything_was_aborted(engine: LLMEngine) -> None:
    expected = answer_all(engine, ["hello"], GREEDY)[0].outputs
    for name in ("one", "two"):
        engine.add_request(name, "hello", GREEDY)
    engine.step()

    engine.abort_request("one")
    engine.abort_request({"two"})

    assert engine.step() == []
    assert answer_all(engine, ["hello"], GREEDY)[0].outputs == expected
    assert engine.last_steps[0].num_running == 1


def test_an_engine_that_was_shut_down_takes_nothing_in(path: Path) -> None:
    engine = LLMEngine.from_engine_args(EngineArgs(model=str(path), paged_attention_num_blocks=32))
    engine.add_request("0", "hello", GREEDY)

    engine.shutdown()
    engine.shutdown()

    assert engine.step() == []
    engine.abort_request("0")
    with pytest.raises(EngineError, match="the engine was shut down; make a new one"):
        engine.add_request("1", "hello", GREEDY)


@pytest.mark.parametrize(
    ("error", "reason"),
    [(EngineError("step 7 failed"), "step 7 failed"), (KeyboardInterrupt(), "KeyboardInterrupt")],
)
def test_an_engine_that_broke_in_a_step_takes_nothing_in(
    path: Path, monkeypatch: pytest.MonkeyPatch, error: BaseException, reason: str
) -> None:
    def fail() -> None:
        raise error

    engine = LLMEngine.from_engine_args(EngineArgs(model=str(path), paged_attention_num_blocks=32))
    engine.add_request("0", "hello", GREEDY)
    monkeypatch.setattr(engine._core, "step", fail)

    with pytest.raises(type(error)):
        engine.step()

    assert engine.step() == []
    with pytest.raises(EngineError, match=f"the engine broke: {reason}; make a new one"):
        engine.add_request("1", "hello", GREEDY)
    engine.shutdown()


def test_a_request_that_never_fits_the_cache_is_refused(path: Path) -> None:
    small = LLMEngine.from_engine_args(
        EngineArgs(model=str(path), paged_attention_num_blocks=2, paged_attention_block_size=16)
    )

    with pytest.raises(RequestError, match="need 3 KV-cache blocks, but the cache has 2") as error:
        small.add_request("0", {"prompt_token_ids": [5] * 30}, GREEDY)

    assert error.value.code == "never_fits"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"max_model_len": 1024}, "max_model_len .1024. exceeds the model's own limit of 512"),
        ({"paged_attention_num_blocks": 10**9}, "at most .* blocks fit"),
    ],
)
def test_an_option_that_does_not_go_with_the_model_is_refused(
    path: Path, changes: dict[str, Any], message: str
) -> None:
    args = dataclasses.replace(EngineArgs(model=str(path)), **changes)

    with pytest.raises(ConfigError, match=message):
        LLMEngine.from_engine_args(args)


def test_a_missing_model_is_one_clear_line(tmp_path: Path) -> None:
    with pytest.raises(ModelLoadError) as error:
        LLMEngine.from_engine_args(EngineArgs(model=str(tmp_path / "nothing")))

    assert "no such model" in str(error.value)
    assert "\n" not in str(error.value)


def test_damaged_weights_are_one_clear_line(path: Path, tmp_path: Path) -> None:
    for file in path.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    weights = tmp_path / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:5000])

    with pytest.raises(ModelLoadError, match="cannot load the weights") as error:
        LLMEngine.from_engine_args(EngineArgs(model=str(tmp_path)))

    assert "\n" not in str(error.value)


@pytest.mark.parametrize("timeout", [0.0, -1.0, float("nan"), float("inf"), "x", True])
def test_a_timeout_that_is_no_time_is_refused_and_harms_nobody(
    engine: LLMEngine, timeout: Any
) -> None:
    with pytest.raises(RequestError, match="timeout_seconds must be a number above 0"):
        engine.add_request("a", "b", GREEDY, timeout_seconds=timeout)

    assert not engine.has_unfinished_requests()


@pytest.mark.parametrize("max_num_seqs", [1, 8])
def test_answers_to_one_prompt_never_held_more_blocks_than_there_are(
    path: Path, max_num_seqs: int
) -> None:
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=str(path),
            paged_attention_block_size=16,
            paged_attention_num_blocks=12,
            max_num_seqs=max_num_seqs,
        )
    )
    params = SamplingParams(n=8, max_tokens=4, ignore_eos=True)

    engine.add_request("a", {"prompt_token_ids": [*range(5, 45)]}, params)
    [output] = [each for each in run(engine) if each.finished]

    # 40 tokens of the prompt and 3 of the answer: two blocks that are shared, and one that is not.
    assert output.metrics.peak_blocks == (3 if max_num_seqs == 1 else 10)


def test_an_engine_can_leave_special_tokens_to_the_prompts() -> None:
    model = str(Path(__file__).parents[2] / "samples" / "tiny-llama")
    prompts = {}
    for adds in (True, False):
        engine = LLMEngine.from_engine_args(EngineArgs(model=model, add_special_tokens=adds))
        [output] = answer_all(engine, ["What is 2 + 3?"], GREEDY)
        prompts[adds] = output.prompt_token_ids

    assert prompts[True][1:] == prompts[False]
