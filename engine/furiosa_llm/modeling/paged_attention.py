"""Serves the attention layers of a transformers model from paged blocks.

transformers lets a model be loaded with an attention function registered by name. Ours finds, on
the layer that calls it, the object that serves this layer; there is no global state.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Generic, Protocol, TypeVar

import torch
from transformers import AttentionInterface, PretrainedConfig

from furiosa_llm.modeling.attention_params import AttentionParams
from furiosa_llm.modeling.layer_shape import LayerShape
from furiosa_llm.modeling.step_layout import StepLayout

ATTENTION_NAME = "furiosa_paged"
_ATTRIBUTE = "furiosa_paged_attention"

CacheT = TypeVar("CacheT")
_ReadCacheT = TypeVar("_ReadCacheT", contravariant=True)


class AttentionBackend(Protocol[_ReadCacheT]):
    """A way to compute paged attention over one kind of cache: a CPU's or a GPU's."""

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        cache: _ReadCacheT,
        layout: StepLayout,
        params: AttentionParams,
    ) -> torch.Tensor:
        """Stores keys [T, K, D] and values [T, K, E], then attends: [T, H, D] -> [T, H, E]."""


@dataclass(slots=True)
class CurrentStep:
    """The layout of the step that a model is running, shared by its layers."""

    layout: StepLayout | None = None


@dataclass(frozen=True, slots=True)
class AttentionLayer:
    """An attention module of the model, its query heads, and the sizes of its keys and values."""

    module: torch.nn.Module
    num_heads: int
    shape: LayerShape


@dataclass(frozen=True, slots=True)
class PagedLayer(Generic[CacheT]):
    """What one attention module attends with: its cache, the running step, and a way to do it."""

    cache: CacheT
    step: CurrentStep
    backend: AttentionBackend[CacheT]

    @classmethod
    def of(cls, module: torch.nn.Module) -> PagedLayer[Any]:
        """Returns what an attention module was bound to."""
        paged_layer: PagedLayer[Any] = getattr(module, _ATTRIBUTE)
        return paged_layer

    @property
    def layout(self) -> StepLayout:
        """That of the running step."""
        assert self.step.layout is not None, "the model was called outside a step"
        return self.step.layout


def register() -> None:
    """Makes `attn_implementation="furiosa_paged"` known to transformers. May be repeated.

    No mask function of this name is registered: the layout says which tokens a query sees, and
    transformers then builds no mask, for which it would wait for the device in each step.
    """
    AttentionInterface.register(ATTENTION_NAME, _attention_forward)


def use_attention(model: torch.nn.Module, name: str) -> None:
    """Lets all modules of a model take the attention function of a name, on their next call."""
    for module in model.modules():
        config = getattr(module, "config", None)
        if isinstance(config, PretrainedConfig):
            config._attn_implementation = name


def bind(
    layers: Sequence[AttentionLayer],
    caches: Sequence[CacheT],
    step: CurrentStep,
    backend: AttentionBackend[CacheT],
) -> None:
    """Lets each layer of a model use its cache, with the layout that `step` holds by then."""
    for layer, cache in zip(layers, caches, strict=True):
        setattr(layer.module, _ATTRIBUTE, PagedLayer(cache, step, backend))


def unbind(layers: Sequence[AttentionLayer]) -> None:
    """Takes from each layer what `bind` gave it."""
    for layer in layers:
        vars(layer.module).pop(_ATTRIBUTE, None)


def _attention_forward(  # noqa: PLR0913 - the signature is that of transformers
    module: torch.nn.Module,
    query: torch.Tensor,
    key: torch.Tensor,
    value: torch.Tensor,
    attention_mask: torch.Tensor | None,  # noqa: ARG001 - None, see `register`
    scaling: float | None = None,
    sliding_window: int | None = None,
    softcap: float | None = None,
    s_aux: torch.Tensor | None = None,
    **_: object,  # attention_probe has seen that none of them matters
) -> tuple[torch.Tensor, None]:
    """What transformers calls: heads first, [1, H, T, D], and back [1, T, H, E]."""
    params = AttentionParams(
        scaling=scaling if scaling is not None else query.shape[-1] ** -0.5,
        sliding_window=sliding_window,
        softcap=softcap,
        sinks=s_aux,
    )
    paged: PagedLayer[object] = getattr(module, _ATTRIBUTE)
    queries, keys, values = (part[0].transpose(0, 1) for part in (query, key, value))
    output = paged.backend(queries, keys, values, paged.cache, paged.layout, params)
    return output.unsqueeze(0), None
