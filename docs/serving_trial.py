"""Tries whether the engine gives the tokens that `transformers.generate` gives, for one model."""

from __future__ import annotations

import random
import tempfile
from dataclasses import dataclass
from enum import Enum
from pathlib import Path

import torch
from transformers import AutoModelForCausalLM
from transformers.utils import logging as transformers_logging

from docs.tiny_checkpoints import EOS_TOKEN_ID, VOCAB_SIZE, class_name, make_checkpoint
from furiosa_llm import EngineArgs, LLMEngine, SamplingParams
from furiosa_llm.errors import ModelLoadError

NUM_NEW_TOKENS = 24
PROMPT_LENGTHS = (1, 7, 33, 70, 16, 129)
# Two logits that differ by less than this share of the largest one are a tie: which of them is
# larger is up to the rounding of float32.
TIE = 1e-5


class Verdict(Enum):
    """What came of a trial. The value is the wording of the table."""

    EQUAL = "served and equal"
    DIFFERENT = "served with a known difference"
    REFUSED = "refused"
    FAILED = "accepted, then failed"
    NOT_TRIED = "could not be tried"


@dataclass(frozen=True, slots=True, kw_only=True)
class Outcome:
    """A row of the table."""

    model_type: str
    class_name: str
    verdict: Verdict
    note: str = ""


@dataclass(frozen=True, slots=True)
class Difference:
    """An answer that is not that of `generate`, by the logits of a pass over the whole text.

    Attributes:
        gap: How far the logit of any of its tokens lies below the largest one, at most, as a
            share of the largest magnitude.
        choice_gap: The same distance between the first token that differs and the one expected.
    """

    gap: float
    choice_gap: float

    @property
    def is_tie(self) -> bool:
        """Whether rounding alone explains the difference."""
        return max(self.gap, self.choice_gap) < TIE


def try_model_type(model_type: str) -> Outcome:
    """Makes a tiny checkpoint, answers prompts with the engine, and compares the tokens."""
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as name:
        verdict, note = _try_checkpoint(model_type, Path(name))
        note = " ".join(note.replace(f"{name}: ", "").replace(name, "").split())
    return Outcome(
        model_type=model_type, class_name=class_name(model_type), verdict=verdict, note=note
    )


def _try_checkpoint(model_type: str, folder: Path) -> tuple[Verdict, str]:
    obstacle = None
    try:
        make_checkpoint(model_type, folder)
    except Exception as error:  # noqa: BLE001 - a model's own code may raise anything
        obstacle = f"transformers cannot make a tiny checkpoint: {_short(error)}"
    try:
        answers = _answer_with_engine(folder)
    except ModelLoadError as error:
        # A refusal needs config.json alone. Without one, missing weights are no refusal.
        if obstacle is not None and isinstance(error.__cause__, Exception):
            return Verdict.NOT_TRIED, obstacle
        return Verdict.REFUSED, str(error)
    except Exception as error:  # noqa: BLE001 - likewise
        return Verdict.FAILED, _short(error)
    try:
        return judge(_find_differences(folder, answers))
    except Exception as error:  # noqa: BLE001 - likewise
        return Verdict.NOT_TRIED, f"transformers.generate fails: {_short(error)}"


def _answer_with_engine(folder: Path) -> list[list[int]]:
    # A small budget: prompts are cut into chunks and mixed with decodes.
    engine = LLMEngine.from_engine_args(
        EngineArgs(
            model=str(folder),
            max_num_seqs=4,
            max_num_batched_tokens=48,
            paged_attention_num_blocks=64,
            paged_attention_block_size=16,
        )
    )
    params = SamplingParams(temperature=0, max_tokens=NUM_NEW_TOKENS, min_tokens=NUM_NEW_TOKENS)
    for index, prompt in enumerate(_prompts()):
        engine.add_request(str(index), {"prompt_token_ids": prompt}, params)
    answers: dict[int, list[int]] = {}
    while engine.has_unfinished_requests():
        for output in engine.step():
            answers[int(output.request_id)] = list(output.outputs[0].token_ids)
    return [answers[index] for index in range(len(answers))]


def _find_differences(folder: Path, answers: list[list[int]]) -> list[Difference]:
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()
    model.generation_config.forced_eos_token_id = None  # BART would end every answer with it
    found = []
    for prompt, answer in zip(_prompts(), answers, strict=True):
        output = model.generate(
            torch.tensor([prompt]),
            attention_mask=torch.ones(1, len(prompt), dtype=torch.long),
            do_sample=False,
            max_new_tokens=NUM_NEW_TOKENS,
            min_new_tokens=NUM_NEW_TOKENS,
        )
        expected = output[0, len(prompt) :].tolist()
        if answer == expected:
            continue
        with torch.no_grad():
            logits = model(input_ids=torch.tensor([prompt + answer]), use_cache=False).logits[0]
        logits = logits[len(prompt) - 1 : -1]  # [NUM_NEW_TOKENS, V]
        logits[:, EOS_TOKEN_ID] = -torch.inf  # min_new_tokens keeps it from being chosen
        found.append(measure(logits, answer, expected))
    return found


def measure(logits: torch.Tensor, answer: list[int], expected: list[int]) -> Difference:
    """Compares two answers by the logits [length, V] that lead to the first of them."""
    scale = float(logits[logits.isfinite()].abs().max())
    chosen = logits.gather(1, torch.tensor(answer)[:, None])[:, 0]
    place = next(i for i in range(len(answer)) if answer[i] != expected[i])
    return Difference(
        gap=float((logits.amax(1) - chosen).max()) / scale,
        choice_gap=abs(float(chosen[place] - logits[place, expected[place]])) / scale,
    )


def judge(differences: list[Difference]) -> tuple[Verdict, str]:
    """Returns the verdict on the answers that differ, and its reason."""
    if not differences:
        return Verdict.EQUAL, ""
    if all(difference.is_tie for difference in differences):
        gap = max(max(difference.gap, difference.choice_gap) for difference in differences)
        return Verdict.EQUAL, f"a tie in {len(differences)} of the answers (gap of {gap:.0e})"
    note = f"{len(differences)} of {len(PROMPT_LENGTHS)} answers differ"
    if all(difference.gap < TIE for difference in differences):
        note += "; they are what the model says when it reads the whole text at once"
    return Verdict.DIFFERENT, note


def _prompts() -> list[list[int]]:
    draw = random.Random(0)
    return [[draw.randrange(3, VOCAB_SIZE) for _ in range(length)] for length in PROMPT_LENGTHS]


def _short(error: Exception) -> str:
    first_line = next((line for line in str(error).splitlines() if line.strip()), "")
    return f"{type(error).__name__}: {first_line.strip()}"
