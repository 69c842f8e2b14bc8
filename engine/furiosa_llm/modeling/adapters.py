"""Replaces in a loaded model what keeps it from being served: methods, never weights."""

from __future__ import annotations

import inspect
import sys
from typing import Any

import torch
from transformers import PreTrainedModel

from furiosa_llm.modeling.attention_swaps import needs_swap, swap_attention
from furiosa_llm.modeling.paged_attention import ATTENTION_NAME

# Decoders of encoder-decoder models, which number the tokens of a batch from left to right.
_COUNTING_DECODERS = frozenset(
    f"{name}ForCausalLM"
    for name in (
        "Bart",
        "BigBirdPegasus",
        "Blenderbot",
        "BlenderbotSmall",
        "MBart",
        "Marian",
        "PLBart",
        "Pegasus",
    )
)


def attends_through_interface(model_class: type[PreTrainedModel]) -> bool:
    """Tells whether the attention of a model can be replaced, by itself or by an adapter."""
    if needs_swap(model_class):
        return True
    names = vars(sys.modules[model_class.__module__])
    if any(name.endswith("_ATTENTION_CLASSES") for name in names):
        return False  # a table of the names that it knows
    # Some that are not marked so call the interface all the same; attention_probe will tell.
    return model_class._supports_attention_backend or "ALL_ATTENTION_FUNCTIONS" in names


def attention_to_load_with(model_class: type[PreTrainedModel] | None) -> str:
    """Returns the attention function to load a model with: some know no names but their own."""
    is_swapped = model_class is not None and needs_swap(model_class)
    return "eager" if is_swapped else ATTENTION_NAME


def adapt(model: PreTrainedModel) -> None:
    """Replaces in a loaded model what keeps it from being served."""
    swap_attention(model)
    name = type(model).__name__
    if name == "Llama4ForCausalLM":
        # It scales queries from position `floor_scale` - 1 on, and takes a token's place in the
        # batch for its position. The loader refuses longer sequences.
        for module in model.modules():
            if type(module).__name__ == "Llama4TextAttention":
                module.attn_temperature_tuning = False
    if name in _COUNTING_DECODERS:
        _CallersPositions(model)
    if "logits_to_keep" not in inspect.signature(model.forward).parameters:
        _KeptLogits(model)


class _CallersPositions:
    """Lets a decoder that counts positions by itself take those of its caller."""

    def __init__(self, model: Any) -> None:
        self._run, self._embed = model.forward, model.model.decoder.embed_positions.forward
        self._position_ids: torch.Tensor | None = None
        model.forward = self._forward
        model.model.decoder.embed_positions.forward = self._embed_positions

    def _forward(
        self,
        *,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        use_cache: bool,
        logits_to_keep: torch.Tensor,
    ) -> Any:
        self._position_ids = position_ids
        return self._run(input_ids=input_ids, use_cache=use_cache, logits_to_keep=logits_to_keep)

    def _embed_positions(self, tokens: Any, *_: object, **__: object) -> Any:
        assert self._position_ids is not None, "the decoder was called on its own"
        embedded = self._embed(tokens, position_ids=self._position_ids.flatten())
        return embedded.reshape(*self._position_ids.shape, -1)


class _KeptLogits:
    """Lets a model that gives the logits of all tokens give those that its caller wants."""

    def __init__(self, model: Any) -> None:
        self._run = model.forward
        model.forward = self._forward

    def _forward(
        self,
        *,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        use_cache: bool,
        logits_to_keep: torch.Tensor,
    ) -> Any:
        output = self._run(input_ids=input_ids, position_ids=position_ids, use_cache=use_cache)
        output.logits = output.logits[:, logits_to_keep]
        return output
