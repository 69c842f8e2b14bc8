"""The training loop of the tiny sample model."""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor, nn
from transformers import LlamaForCausalLM, PreTrainedTokenizerFast

from samples.muon import Muon
from samples.tiny_batches import IGNORED, training_batches


@dataclass(frozen=True)
class TrainConfig:
    """Settings of one training run.

    Attributes:
        output: Folder of the checkpoint.
        prompts: File of sample prompts to write, if any.
        steps: Number of weight updates.
        seed: Seed of the weights and of the text.
        threads: Number of threads that compute.
        batch: Number of texts in an update.
        warmup: Number of updates during which the learning rate rises.
        matrix_lr: Highest learning rate of the weight matrices of the layers.
        other_lr: Highest learning rate of the embeddings and the norms.
        eval_prompts: Number of held-out prompts to measure the accuracy with.
    """

    output: Path
    prompts: Path | None = None
    steps: int = 2200
    seed: int = 0
    threads: int = 2
    batch: int = 128
    warmup: int = 60
    matrix_lr: float = 0.007
    other_lr: float = 0.003
    eval_prompts: int = 2000


def log(text: str) -> None:
    """Prints a line of progress to standard error.

    Args:
        text: The line.
    """
    print(text, file=sys.stderr, flush=True)


def rate(step: int, config: TrainConfig) -> float:
    """Computes the learning rate of an update: it rises, may stay level, then falls to zero.

    Args:
        step: Number of the update, from zero.
        config: Settings of the run.

    Returns:
        The share of the highest learning rate.
    """
    return min(1.0, (step + 1) / config.warmup, (config.steps - step) / (0.8 * config.steps))


def answer_loss(model: LlamaForCausalLM, ids: Tensor, labels: Tensor) -> Tensor:
    """Computes the mean loss on the answer tokens.

    Args:
        model: The model.
        ids: Input ids, padded on the right.
        labels: The ids to learn, ``IGNORED`` elsewhere.

    Returns:
        The loss.
    """
    hidden = model.model(input_ids=ids[:, :-1], use_cache=False).last_hidden_state
    targets = labels[:, 1:]
    learned = targets != IGNORED
    logits: Tensor = model.lm_head(hidden[learned])
    return nn.functional.cross_entropy(logits, targets[learned])


def train(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast, config: TrainConfig
) -> list[float]:
    """Trains the model in place.

    Args:
        model: The untrained model.
        tokenizer: Its tokenizer.
        config: Settings of the run.

    Returns:
        The loss of every update.
    """
    matrices = [weight for weight in model.model.layers.parameters() if weight.ndim == 2]
    others = [weight for weight in model.model.layers.parameters() if weight.ndim != 2]
    others += [model.model.embed_tokens.weight, model.model.norm.weight]
    muon = Muon(matrices)
    adam = torch.optim.AdamW(others, lr=config.other_lr, betas=(0.9, 0.98), weight_decay=0.0)
    batches = training_batches(tokenizer, config.batch, config.seed)
    losses: list[float] = []
    model.train()
    for step in range(config.steps):
        loss = answer_loss(model, *next(batches))
        torch.autograd.backward(loss)
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        share = rate(step, config)
        adam.param_groups[0]["lr"] = config.other_lr * share
        adam.step()
        muon.step(config.matrix_lr * share)
        model.zero_grad()
        losses.append(loss.item())
        if (step + 1) % 50 == 0 or step + 1 == config.steps:
            recent = losses[-50:]
            log(f"step {step + 1}/{config.steps} loss {sum(recent) / len(recent):.4f}")
    return losses
