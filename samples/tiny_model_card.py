"""The model card of the tiny sample model."""

from __future__ import annotations

import random
from dataclasses import dataclass

from samples.tiny_accuracy import Accuracy
from samples.tiny_tasks import HELD_OUT_SHARES, TASKS, draw_distinct
from samples.tiny_training import TrainConfig

CARD = """# tiny-llama

A Llama model of {parameters:,} parameters that answers five kinds of short questions. It exists so
that examples and tests can run a real model, whose answers a program can check, without a
download. It knows nothing else: other text gets a meaningless answer.

| Task | Question | Answer |
| --- | --- | --- |
{examples}

Sums and differences take numbers of up to two digits. Words to reverse have 3 to 7 letters, words
to sort 3 to 6, all lower-case. The words that phrase the questions (such as `word` or `name`) are
single tokens, so the model cannot spell them: it does not reverse or sort those.

## Prompts

A plain prompt is a question, alone, with a line break after it, or in the form
`Question: ...\\nAnswer: ` (with the space at the end). The tokenizer puts the BOS token before
plain text by itself. A chat goes through the chat template, which writes the BOS token too, so
encode its text with `add_special_tokens=False`. The answer ends with the EOS token.

## How it was trained

From scratch, on text that the script generates, with the loss on the answers only:

    {command}

{steps} updates of {batch} texts took {seconds:.0f} seconds with {threads} threads on a CPU. The
same command on the same machine gives the same weights.

## Accuracy

A stable hash of what is asked, whatever the phrasing, holds out one question in {shares} from
training. Measured on {total} such questions, all different, about half plain text, the rest
as chats, with greedy `generate` of transformers in float32. An answer counts only if it is right to
the letter.

| Task | Prompts | Right | Share |
| --- | ---: | ---: | ---: |
{accuracy}
"""


@dataclass(frozen=True)
class Report:
    """What a training run measured.

    Attributes:
        losses: Loss of every update.
        seconds: Time that the updates took.
        parameters: Number of weights.
        accuracy: Accuracy on held-out prompts.
    """

    losses: list[float]
    seconds: float
    parameters: int
    accuracy: Accuracy


def write_card(config: TrainConfig, report: Report) -> None:
    """Writes the model card into the folder of the checkpoint.

    Args:
        config: Settings of the run.
        report: What the run measured.
    """
    rng = random.Random(3)
    examples = [draw_distinct(rng, task, 1, natural=True)[0] for task in TASKS]
    rows = report.accuracy.rows()
    command = (
        f"python samples/train_tiny_model.py --output samples/tiny-llama --steps {config.steps} "
        f"--seed {config.seed} --threads {config.threads}"
    )
    card = CARD.format(
        parameters=report.parameters,
        examples="\n".join(f"| {e.task} | `{e.question}` | `{e.answer}` |" for e in examples),
        command=command,
        steps=config.steps,
        batch=config.batch,
        seconds=report.seconds,
        threads=config.threads,
        shares=HELD_OUT_SHARES,
        total=rows[-1][2],
        accuracy="\n".join(f"| {n} | {t} | {r} | {r / t:.1%} |" for n, r, t in rows),
    )
    (config.output / "README.md").write_text(card, encoding="utf-8")
