"""Runs a few tokens through a model, to tell what its modules do and what a change of them does."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from furiosa_llm.modeling import paged_attention
from furiosa_llm.modeling.attention_params import AttentionParams
from furiosa_llm.modeling.cpu.attention import CpuAttention
from furiosa_llm.modeling.cpu.core_threads import CoreThreads
from furiosa_llm.modeling.cpu.layer_cache import LayerCache
from furiosa_llm.modeling.layer_shape import LayerShape
from furiosa_llm.modeling.paged_attention import AttentionLayer, CurrentStep
from furiosa_llm.modeling.step_layout import StepLayout

_logger = logging.getLogger(__name__)

NUM_TOKENS = 6
_BLOCK_SIZE = 16
_KEPT = (2, 5)  # tokens whose logits are asked for in a step of those
# Of the largest element of what is compared. Sums in another order differ by a hundredth of it.
_TOLERANCE = 3e-5


@dataclass(frozen=True, slots=True)
class Call:
    """What a module was given and what it returned."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    output: Any


@dataclass(frozen=True, slots=True)
class Attended:
    """What an attention module asked for: queries, keys and values of [T, heads, D]."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    params: AttentionParams


class Trial:
    """Runs a few tokens through a model and notes what its modules do.

    Attributes:
        calls: Of each module; without an output where it was called more than once.
        attended: By attention module.
    """

    def __init__(
        self, model: nn.Module, layers: Sequence[AttentionLayer], *, max_model_len: int
    ) -> None:
        """Runs nothing yet.

        Args:
            model: A loaded model.
            layers: Those of it that attend.
            max_model_len: Longest sequence that it has to serve.
        """
        self.calls: dict[nn.Module, Call] = {}
        self.attended: dict[nn.Module, Attended] = {}
        self._model = model
        self._layers = layers
        self._positions = [min(p, max_model_len - 1) for p in (0, 1, 2, 3, 60, max_model_len - 1)]
        self._modules_of_caches: dict[int, nn.Module] = {}

    def run(self) -> torch.Tensor:
        """Returns the logits of the model as it is, [1, T, V]."""
        hooks = [
            module.register_forward_hook(self._note, with_kwargs=True)
            for module in self._model.modules()
        ]
        try:
            return self._run(self._layers, self._note_attention)
        finally:
            paged_attention.unbind(self._layers)  # else what is replaced would outlive the trial
            for hook in hooks:
                hook.remove()

    def says(self, expected: torch.Tensor, layers: Sequence[AttentionLayer]) -> bool:
        """Tells whether the model, as it is now, computes the same logits in steps.

        A model may also fail, having looked for what was replaced.
        """
        try:
            logits = self._run(layers, CpuAttention(CoreThreads(1)))
            kept = self._run(layers, CpuAttention(CoreThreads(1)), keep=_KEPT)
        except (AttributeError, TypeError, RuntimeError) as error:
            _logger.info("the fused model fails: %s", error)
            return False
        return is_close(logits, expected) and is_close(kept, expected[:, _KEPT])

    def _run(
        self, layers: Sequence[AttentionLayer], backend: Any, keep: Sequence[int] | None = None
    ) -> torch.Tensor:
        caches = [new_cache(layer.shape) for layer in layers]
        self._modules_of_caches = {
            id(cache): layer.module for cache, layer in zip(caches, layers, strict=True)
        }
        paged_attention.bind(layers, caches, CurrentStep(_layout(keep)), backend)
        with torch.inference_mode():
            logits: torch.Tensor = self._model(
                input_ids=torch.arange(3, 3 + NUM_TOKENS)[None],
                position_ids=torch.tensor(self._positions)[None],
                use_cache=False,
                logits_to_keep=torch.tensor(range(NUM_TOKENS) if keep is None else keep),
            ).logits
        return logits

    def _note(self, module: nn.Module, arguments: Any, keywords: Any, output: Any) -> None:
        if module in self.calls:
            output = None  # it is called more than once: what it does is not one thing
        self.calls[module] = Call(arguments, keywords, output)

    def _note_attention(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: LayerCache,
        layout: StepLayout,
        params: AttentionParams,
    ) -> torch.Tensor:
        module = self._modules_of_caches[id(cache)]
        self.attended[module] = Attended(query, key, value, params)
        return CpuAttention(CoreThreads(1))(query, key, value, cache, layout, params)


def is_close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Tells whether two results differ by no more than the order of their sums can explain."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return False
    largest = expected.abs().max().item()
    return (actual - expected).abs().max().item() <= _TOLERANCE * largest


def new_cache(shape: LayerShape) -> LayerCache:
    """Returns a cache that holds the tokens of the trial in its first slots."""
    return LayerCache.allocate(shape, num_blocks=1, block_size=_BLOCK_SIZE)


def _layout(keep: Sequence[int] | None = None) -> StepLayout:
    """One request of a few tokens, in one block; of some, logits are asked for."""
    kept = None if keep is None else torch.tensor(keep)
    return StepLayout(
        slot_mapping=torch.arange(NUM_TOKENS),
        query_start_loc=torch.tensor([0, NUM_TOKENS], dtype=torch.int32),
        seq_lens=torch.tensor([NUM_TOKENS], dtype=torch.int32),
        block_tables=torch.zeros(1, 1, dtype=torch.int32),
        tasks=torch.tensor([[0, 0, NUM_TOKENS]], dtype=torch.int32),
        kept=kept,
        kept_tasks=None
        if keep is None
        else torch.tensor([[0, token, token + 1] for token in keep], dtype=torch.int32),
    )
