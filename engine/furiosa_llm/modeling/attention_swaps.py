"""Lets attention modules of the old style attend through transformers' attention interface.

They compute scores and softmax themselves. The one method that does so is replaced, chosen by the
name of the model's class; weights, projections and positions stay transformers' own.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from transformers import AttentionInterface, PretrainedConfig, PreTrainedModel

_Attended = tuple[torch.Tensor, None]  # the output, and no weights


@dataclass(frozen=True, slots=True)
class _Attention:
    """Attends for one module, with the function that the model's configuration names by then."""

    module: Any
    config: PretrainedConfig
    scaling: float
    sliding_window: int | None = None

    def __call__(
        self,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        mask: torch.Tensor | None,
    ) -> torch.Tensor:
        """Takes [1, H, T, D], [1, K, T, D] and [1, K, T, E], and returns [1, T, H, E]."""
        output, _ = AttentionInterface()[self.config._attn_implementation](
            self.module,
            query,
            key,
            value,
            mask,
            scaling=self.scaling,
            sliding_window=self.sliding_window,
        )
        return output  # type: ignore[no-any-return]  # transformers has no types


def _scaled_core(module: Any, config: PretrainedConfig) -> Callable[..., _Attended]:
    """`_attn` of GPT-J and CodeGen."""
    return _core(_Attention(module, config, 1 / float(module.scale_attn)))


def _normed_core(module: Any, config: PretrainedConfig) -> Callable[..., _Attended]:
    """`_attn` of the Japanese GPT-NeoX."""
    return _core(_Attention(module, config, 1 / float(module.norm_factor)))


def _core(attention: _Attention) -> Callable[..., _Attended]:
    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,
    ) -> _Attended:
        return attention(query, key, value, attention_mask).transpose(1, 2), None

    return attend


def _gpt_neo(module: Any, config: PretrainedConfig) -> Callable[..., _Attended]:
    """`_attn` of GPT-Neo: unscaled, and every other layer hides tokens by a buffer of its own."""
    is_local = module.attention_type == "local"
    attention = _Attention(module, config, 1.0, config.window_size if is_local else None)

    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None = None,  # noqa: ARG001 - it hides later tokens
    ) -> _Attended:
        return attention(query, key, value, None).transpose(1, 2), None

    return attend


def _openai_gpt(module: Any, config: PretrainedConfig) -> Callable[..., list[torch.Tensor]]:
    """`_attn` of the first GPT, whose keys come as [1, H, D, T]."""
    head_size = module.split_size // module.n_head
    attention = _Attention(module, config, head_size**-0.5 if module.scale else 1.0)

    def attend(
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        output_attentions: bool,  # noqa: ARG001
    ) -> list[torch.Tensor]:
        output = attention(query, key.transpose(2, 3), value, attention_mask)
        return [output.transpose(1, 2)]

    return attend


def _falcon(module: Any, config: PretrainedConfig) -> Callable[..., _Attended]:
    """`forward` of Falcon with rotary positions."""
    attention = _Attention(module, config, float(module.inv_norm_factor))
    rotate = sys.modules[type(module).__module__].apply_rotary_pos_emb

    def forward(
        hidden_states: torch.Tensor,
        *,
        attention_mask: torch.Tensor | None,
        position_embeddings: tuple[torch.Tensor, torch.Tensor],
        **_: object,
    ) -> _Attended:
        parts = module._split_heads(module.query_key_value(hidden_states))
        query, key, value = (part.transpose(1, 2) for part in parts)
        group_size = key.shape[1] // module.num_kv_heads  # keys may come once for each query head
        query, key = rotate(query, key[:, ::group_size], *position_embeddings)
        output = attention(query, key, value[:, ::group_size], attention_mask)
        return module.dense(output.flatten(2)), None

    return forward


def _xglm(module: Any, config: PretrainedConfig) -> Callable[..., _Attended]:
    """`forward` of XGLM."""
    attention = _Attention(module, config, float(module.scaling))
    project = _projections(module, ("q_proj", "k_proj", "v_proj"), module.head_dim)

    def forward(
        hidden_states: torch.Tensor, *, attention_mask: torch.Tensor | None, **_: object
    ) -> _Attended:
        output = attention(*project(hidden_states), attention_mask)
        return module.out_proj(output.flatten(2)), None

    return forward


def _bert(module: Any, config: PretrainedConfig) -> Callable[..., _Attended]:
    """`forward` of the self-attention in BERTs that are decoders."""
    head_size = module.attention_head_size
    attention = _Attention(module, config, head_size**-0.5)
    project = _projections(module, ("query", "key", "value"), head_size)

    def forward(
        hidden_states: torch.Tensor, *, attention_mask: torch.Tensor | None, **_: object
    ) -> _Attended:
        return attention(*project(hidden_states), attention_mask).flatten(2), None

    return forward


def _projections(
    module: Any, names: tuple[str, str, str], head_size: int
) -> Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor, torch.Tensor]]:
    def project(hidden_states: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        query, key, value = (
            getattr(module, name)(hidden_states).unflatten(-1, (-1, head_size)).transpose(1, 2)
            for name in names
        )
        return query, key, value

    return project


@dataclass(frozen=True, slots=True)
class _Swap:
    """The method that is replaced, on every module of a class."""

    module_class: str
    method: str
    replacement: Callable[[Any, PretrainedConfig], Callable[..., Any]]


_SWAPS: Mapping[str, _Swap] = {
    "CodeGenForCausalLM": _Swap("CodeGenAttention", "_attn", _scaled_core),
    "FalconForCausalLM": _Swap("FalconAttention", "forward", _falcon),
    "GPTJForCausalLM": _Swap("GPTJAttention", "_attn", _scaled_core),
    "GPTNeoForCausalLM": _Swap("GPTNeoSelfAttention", "_attn", _gpt_neo),
    "GPTNeoXJapaneseForCausalLM": _Swap("GPTNeoXJapaneseAttention", "_attn", _normed_core),
    "MegatronBertForCausalLM": _Swap("MegatronBertSelfAttention", "forward", _bert),
    "OpenAIGPTLMHeadModel": _Swap("Attention", "_attn", _openai_gpt),
    "RemBertForCausalLM": _Swap("RemBertSelfAttention", "forward", _bert),
    "XGLMForCausalLM": _Swap("XGLMAttention", "forward", _xglm),
}


def needs_swap(model_class: type[PreTrainedModel]) -> bool:
    """Tells whether a model has attention modules of the old style that can be served."""
    return model_class.__name__ in _SWAPS


def swap_attention(model: PreTrainedModel) -> None:
    """Lets the attention modules of a model call the interface, where they do not by themselves."""
    swap = _SWAPS.get(type(model).__name__)
    if swap is None:
        return
    for module in model.modules():
        if type(module).__name__ == swap.module_class:
            setattr(module, swap.method, swap.replacement(module, model.config))
