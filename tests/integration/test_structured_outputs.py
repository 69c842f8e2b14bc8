"""Answers have the form that they must have, whatever else runs beside them."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from furiosa_llm.config import EngineArgs
from furiosa_llm.engine_limits import ModelInfo
from furiosa_llm.errors import InvalidParamsError, StructureFailedError
from furiosa_llm.execution.grammar_masks import GrammarMasks
from furiosa_llm.execution.grammars import Grammars
from furiosa_llm.llm_engine import LLMEngine
from furiosa_llm.outputs import CompletionOutput
from furiosa_llm.sampling_params import SamplingParams
from furiosa_llm.scheduler_output import SamplingInputs
from furiosa_llm.structured_outputs import StructuredOutputs
from furiosa_llm.tokenization import Tokenizer
from tests.checkpoints import VOCAB_SIZE
from tests.factories import answer_all
from tests.integration.test_answers_do_not_depend_on_scheduling import make_engine, make_prompts

pytest.importorskip("llguidance")  # some machines with a GPU lack it

SCHEMA = {
    "type": "object",
    "properties": {
        "name": {"type": "string", "maxLength": 4},
        "age": {"type": "integer", "minimum": 0, "maximum": 120},
        "kind": {"enum": ["cat", "dog"]},
    },
    "required": ["name", "age", "kind"],
    "additionalProperties": False,
}
WIDE = {"properties": {f"p{i}": {"enum": [f"{i}-{j}" for j in range(60)]} for i in range(2500)}}
CHOICES = ('say "yes"', "né\n", "back\\slash", "日本 😀", "maybe")
ARITHMETIC = 'start: NUMBER (("+" | "-") NUMBER){1,3}\nNUMBER: /[0-9]{1,3}/'
DRAWN = SamplingParams(temperature=1.0, max_tokens=200)
PLAIN = DRAWN.updated({"max_tokens": 90, "ignore_eos": True})


def formed(**form: Any) -> SamplingParams:
    return dataclasses.replace(DRAWN, structured_outputs=StructuredOutputs(**form))


FORMS = [
    formed(json=SCHEMA),
    formed(regex="[0-9]{3}-[a-z]{2,5}"),
    formed(choice=CHOICES),
    PLAIN,
    formed(grammar=ARITHMETIC),
]


@pytest.fixture(scope="module")
def path(checkpoint: Callable[[str], Path]) -> Path:
    return checkpoint("Qwen3")


@pytest.fixture(scope="module")
def plain(path: Path) -> list[CompletionOutput]:
    """Ten answers of all forms side by side, with all the room there is."""
    return answers(make_engine(path))


def answers(engine: LLMEngine) -> list[CompletionOutput]:
    return [output.outputs[0] for output in answer_all(engine, make_prompts(), FORMS * 2)]


def test_each_answer_has_its_form(plain: list[CompletionOutput]) -> None:
    for start in (0, 5):
        schema, regex, choice, free, grammar = plain[start : start + 5]
        value = json.loads(schema.text)
        assert list(value) == ["name", "age", "kind"]
        assert len(value["name"]) <= 4
        assert 0 <= value["age"] <= 120
        assert value["kind"] in ("cat", "dog")
        assert re.fullmatch("[0-9]{3}-[a-z]{2,5}", regex.text)
        assert choice.text in CHOICES
        assert re.fullmatch(r"[0-9]{1,3}([+-][0-9]{1,3}){1,3}", grammar.text)
        assert len(free.token_ids) == 90
    assert {one.finish_reason for one in (*plain[:3], plain[4])} == {"stop"}


def test_any_json_object_will_do(path: Path) -> None:
    engine = make_engine(path)
    params = formed(json_object=True).updated({"max_tokens": 400})

    texts = [one.outputs[0] for one in answer_all(engine, make_prompts(), params)]

    complete = [one.text for one in texts if one.finish_reason == "stop"]
    assert complete
    assert all(isinstance(json.loads(text), dict) for text in complete)


@pytest.mark.parametrize(
    "changes",
    [
        pytest.param({"paged_attention_num_blocks": 20}, id="tight cache"),
        pytest.param({"max_num_seqs": 1}, id="one at a time"),
        pytest.param({"npu_queue_limit": 2}, id="two steps in flight"),
        pytest.param({"max_num_batched_tokens": 16, "is_offline": True}, id="other order"),
    ],
)
def test_a_form_is_kept_however_the_work_is_cut(
    changes: dict[str, Any], path: Path, plain: list[CompletionOutput]
) -> None:
    assert answers(make_engine(path, **changes)) == plain


def test_a_tight_cache_does_preempt(path: Path) -> None:
    engine = make_engine(path, paged_attention_num_blocks=20)

    outputs = answer_all(engine, make_prompts(), FORMS * 2)

    assert sum(output.metrics.num_preemptions for output in outputs) > 0


def test_a_greedy_answer_and_several_answers_have_the_form_too(path: Path) -> None:
    engine = make_engine(path)
    greedy = formed(choice=CHOICES).updated({"temperature": 0, "repetition_penalty": 1.2})
    several = formed(choice=CHOICES).updated({"n": 2, "best_of": 4, "logprobs": 2})

    outputs = answer_all(engine, ["pick", "pick"], [greedy, several])

    texts = [answer.text for output in outputs for answer in output.outputs]
    assert len(texts) == 3
    assert set(texts) <= set(CHOICES)


@pytest.mark.parametrize(
    ("form", "message"),
    [
        ({"json": {"type": "thing"}}, r"structured_outputs\.json cannot be compiled: Invalid type"),
        ({"json": "{"}, r"structured_outputs\.json cannot be compiled"),
        ({"json": "5"}, r"structured_outputs\.json cannot be compiled"),
        ({"regex": "\ud83d"}, r"structured_outputs\.regex cannot be compiled: .*surrogates"),
        ({"regex": "("}, r"structured_outputs\.regex cannot be compiled: .*unclosed group"),
        ({"regex": "(?=a)b"}, r"structured_outputs\.regex cannot be compiled: .*look-around"),
        ({"grammar": "start: nothing"}, r"structured_outputs\.grammar cannot be compiled"),
        ({"json": WIDE}, r"structured_outputs\.json cannot be compiled: .*too big"),
    ],
)
def test_a_form_that_does_not_compile_is_refused(
    form: dict[str, Any], message: str, path: Path
) -> None:
    engine = make_engine(path)

    for name in ("first", "again"):
        with pytest.raises(InvalidParamsError, match=message) as error:
            engine.add_request(name, "hello", formed(**form))
        assert "\n" not in str(error.value)
    assert not engine.has_unfinished_requests()


def test_a_slow_tokenizer_is_refused(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from transformers import PreTrainedTokenizerFast

    monkeypatch.setattr(PreTrainedTokenizerFast, "is_fast", False)

    with pytest.raises(InvalidParamsError, match="needs a fast tokenizer"):
        make_engine(path).add_request("0", "hello", formed(regex="a"))


def make_grammars(path: Path, **changes: Any) -> Grammars:
    args = EngineArgs(model=str(path))
    info = ModelInfo(max_model_len=512, vocab_size=VOCAB_SIZE, eos_token_ids=frozenset({2}))
    return Grammars(lambda: Tokenizer.from_engine_args(args), dataclasses.replace(info, **changes))


def entry(*token_ids: int, **form: Any) -> SamplingInputs:
    return SamplingInputs(
        params=formed(**form), seed=0, position=len(token_ids), output_token_ids=token_ids
    )


def test_a_model_without_an_end_of_sequence_is_refused(path: Path) -> None:
    grammars = make_grammars(path, eos_token_ids=frozenset())

    with pytest.raises(InvalidParamsError, match="a model that has an end-of-sequence token"):
        grammars.check(StructuredOutputs(regex="a"))


def test_what_may_come_next_follows_from_the_tokens_alone(path: Path) -> None:
    tokenizer = Tokenizer.from_engine_args(EngineArgs(model=str(path)))
    a, b = tokenizer.encode("ab")
    steps = [entry(regex="ab?"), entry(a, regex="ab?"), entry(a, b, regex="ab?")]
    masks = GrammarMasks(make_grammars(path), max_kept=1)

    def allowed(request_id: int, step: SamplingInputs) -> list[int]:
        forbidden, failures = masks.masks([request_id], [step])
        assert not failures
        return (~forbidden[0]).nonzero()[:, 0].tolist()

    step_by_step = [allowed(0, step) for step in steps]
    # In between, the other request takes the only place.
    turn_by_turn = [[allowed(request_id, step) for request_id in (1, 2)] for step in steps]

    masks = GrammarMasks(make_grammars(path))
    forward_and_back = [allowed(0, step) for step in (*steps, *reversed(steps))]

    assert step_by_step == [[a], [2, b], [2]]
    assert forward_and_back == [*step_by_step, *reversed(step_by_step)]
    assert turn_by_turn == [[each, each] for each in step_by_step]


def test_a_grammar_that_meets_a_limit_ends_that_answer_alone(path: Path) -> None:
    engine = make_engine(path)
    pairs = " | ".join(" ".join(["some"] * count) for count in range(2, 12))
    ambiguous = formed(grammar=f'start: some "!"\nsome: {pairs} | "a"')
    params = [ambiguous.updated({"logit_bias": {engine.tokenizer.encode("!")[0]: -100}}), PLAIN]

    failed, answered = answer_all(engine, ["a", "b"], params)

    assert failed.outputs[0].finish_reason == "error"
    assert isinstance(failed.error, StructureFailedError)
    assert "structured_outputs cannot go on: Parser Error" in str(failed.error)
    assert (answered.outputs[0].finish_reason, answered.error) == ("length", None)
