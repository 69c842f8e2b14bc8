"""The script that trains ``samples/tiny-llama``, and the checkpoint that it made."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForCausalLM, AutoTokenizer, LlamaForCausalLM

from samples import tiny_batches, tiny_tasks, train_tiny_model
from samples.tiny_accuracy import evaluate, generate
from samples.tiny_model_card import Report
from samples.tiny_prompts import chat_text, sample_rows
from samples.tiny_training import TrainConfig

SAMPLES = Path(train_tiny_model.__file__).resolve().parent
CHECKPOINT = SAMPLES / "tiny-llama"
MEGABYTE = 1_000_000


def short_config(output: Path) -> TrainConfig:
    prompts = output / "prompts.jsonl"
    return TrainConfig(output, prompts, 24, threads=1, batch=16, warmup=4, eval_prompts=10)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    output = tmp_path_factory.mktemp("first")
    return output, train_tiny_model.run(short_config(output))


@pytest.fixture(scope="module")
def second(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Report]:
    output = tmp_path_factory.mktemp("second")
    return output, train_tiny_model.run(short_config(output))


@pytest.fixture(scope="module")
def tokenizer() -> Any:
    return AutoTokenizer.from_pretrained(CHECKPOINT)


def rows() -> list[dict[str, Any]]:
    text = (SAMPLES / "prompts.jsonl").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_the_loss_goes_down(first: tuple[Path, Report]) -> None:
    losses = first[1].losses
    assert len(losses) == 24
    assert sum(losses[-6:]) < 0.8 * sum(losses[:6])


def test_the_same_seed_gives_the_same_weights(
    first: tuple[Path, Report], second: tuple[Path, Report]
) -> None:
    weights, again = (load_file(output / "model.safetensors") for output, _ in (first, second))
    assert weights.keys() == again.keys()
    assert all(torch.equal(weights[name], again[name]) for name in weights)
    assert first[1].losses == second[1].losses


def test_the_same_seed_gives_the_same_prompts(
    first: tuple[Path, Report], second: tuple[Path, Report]
) -> None:
    texts = {
        (output / "prompts.jsonl").read_text(encoding="utf-8") for output, _ in (first, second)
    }
    assert len(texts) == 1


def test_the_checkpoint_loads_with_transformers(first: tuple[Path, Report]) -> None:
    model = AutoModelForCausalLM.from_pretrained(first[0])
    assert isinstance(model, LlamaForCausalLM)
    assert model.config.num_key_value_heads < model.config.num_attention_heads
    assert model.config.vocab_size == len(AutoTokenizer.from_pretrained(first[0]))
    assert model.generation_config.eos_token_id == model.config.eos_token_id == 2


def test_the_model_card_states_the_measured_accuracy(first: tuple[Path, Report]) -> None:
    card = (first[0] / "README.md").read_text(encoding="utf-8")
    name, right, total = first[1].accuracy.rows()[-1]
    assert f"| {name} | {total} | {right} | {right / total:.1%} |" in card


def test_training_texts_are_never_held_out(monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[tiny_tasks.Example] = []

    def record(rng: random.Random, task: str, *, held_out: bool) -> tiny_tasks.Example:
        drawn.append(tiny_tasks.draw(rng, task, held_out=held_out))
        return drawn[-1]

    monkeypatch.setattr(tiny_batches, "draw", record)
    rng = random.Random(0)
    for _ in range(500):
        tiny_batches.draw_training_text(rng)
    assert len(drawn) >= 500
    assert not any(tiny_tasks.is_held_out(e.task, e.content) for e in drawn)


@pytest.mark.parametrize("task", list(tiny_tasks.TASKS))
def test_sample_questions_are_all_held_out(task: str) -> None:
    examples = tiny_tasks.draw_distinct(random.Random(0), task, 10, natural=True)
    assert all(tiny_tasks.is_held_out(task, example.content) for example in examples)
    assert len({example.content for example in examples}) == 10


def test_the_answers_of_the_tasks_are_right() -> None:
    rng = random.Random(0)
    for _ in range(200):
        total = tiny_tasks.make_sum(rng)
        difference = tiny_tasks.make_difference(rng)
        assert int(total.answer) == sum(map(int, total.content.split("+")))
        a, b = map(int, difference.content.split("-"))
        assert int(difference.answer) == a - b
        reverse = tiny_tasks.make_reverse(rng)
        assert reverse.answer[::-1] in reverse.question
        field = tiny_tasks.make_field(rng)
        wanted, record = field.content.split(" ", 1)
        assert json.loads(field.answer) == {wanted: json.loads(record)[wanted]}


@pytest.mark.parametrize(
    "text",
    [
        "What is 12 + 5?\n",
        "héllo, the wörd  is über 😀👩‍👩‍👧 日本語\t\r\n\x00",
        ' {"name": "Añá", "theme": [1, -2]}  + - ',
    ],
)
def test_the_tokenizer_gives_any_text_back(tokenizer: Any, text: str) -> None:
    ids = tokenizer(text)["input_ids"]
    assert ids[0] == tokenizer.bos_token_id
    assert tokenizer.decode(ids[1:]) == text
    assert tokenizer(text, add_special_tokens=False)["input_ids"] == ids[1:]


def test_every_digit_is_one_token(tokenizer: Any) -> None:
    tokens = tokenizer.tokenize("Add 123 and 4507.")
    assert [token for token in tokens if token.isdigit()] == list("1234507")


def test_the_chat_template_writes_roles_and_one_bos_token(tokenizer: Any) -> None:
    messages = [
        {"role": "system", "content": "Answer briefly."},
        {"role": "user", "content": "Add 1 and 2."},
        {"role": "assistant", "content": "3"},
        {"role": "user", "content": "Add 3 and 4."},
    ]
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    assert text == (
        "<s><|system|>Answer briefly.<|user|>Add 1 and 2.<|assistant|>3</s>"
        "<|user|>Add 3 and 4.<|assistant|>"
    )
    assert text == chat_text(messages)
    waiting = tokenizer.apply_chat_template(messages, tokenize=False)
    assert waiting == text.removesuffix("<|assistant|>")


def test_the_checkpoint_takes_at_most_six_megabytes() -> None:
    assert sum(file.stat().st_size for file in CHECKPOINT.iterdir()) <= 6 * MEGABYTE


def test_the_checkpoint_answers_held_out_questions_right() -> None:
    accuracy = evaluate(CHECKPOINT, 200, seed=11)
    _, right, total = accuracy.rows()[-1]
    assert total == 200
    assert right >= 0.98 * total


def test_the_checkpoint_answers_the_sample_prompts(tokenizer: Any) -> None:
    model = AutoModelForCausalLM.from_pretrained(CHECKPOINT)
    prompts = [
        tokenizer.bos_token + row["prompt"]
        if "prompt" in row
        else tokenizer.apply_chat_template(
            row["messages"], tokenize=False, add_generation_prompt=True
        )
        for row in rows()
    ]
    answers = generate(model, tokenizer, prompts)
    right = [row["expected"] == answer for row, answer in zip(rows(), answers, strict=True)]
    assert sum(right) >= 0.95 * len(right)


def test_the_sample_prompts_are_what_the_script_writes() -> None:
    assert rows() == sample_rows()
    assert 60 <= len(rows()) <= 100
    assert {row["task"] for row in rows()} == set(tiny_tasks.TASKS)
    assert all(("prompt" in row) != ("messages" in row) for row in rows())
