from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from transformers import AttentionInterface, PretrainedConfig
from transformers.masking_utils import create_causal_mask, create_sliding_window_causal_mask

from furiosa_llm.errors import ModelLoadError
from furiosa_llm.modeling.attention_probe import find_attention_layers

HIDDEN_SIZE = 8
Change = Callable[[dict[str, Any]], object]


class TinyAttention(torch.nn.Module):
    """An attention layer whose call of the interface a test may change."""

    is_causal = True

    def __init__(self, change: Change) -> None:
        super().__init__()
        self.change = change
        self.build_mask = create_causal_mask

    def forward(self, hidden: torch.Tensor, config: PretrainedConfig) -> torch.Tensor:
        arguments: dict[str, Any] = {
            "query": hidden[:, None],
            "key": hidden[:, None],
            "value": hidden[:, None],
            "attention_mask": self.build_mask(config, hidden, None, None),
            "scaling": 1.0,
        }
        self.change(arguments)
        output: torch.Tensor
        output, _ = AttentionInterface()[config._attn_implementation](self, **arguments)
        return output.flatten(2)


class TinyModel(torch.nn.Module):
    """One attention layer over embeddings of tokens and positions."""

    def __init__(self, change: Change | None = None) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.config = PretrainedConfig()
        self.tokens = torch.nn.Embedding(16, HIDDEN_SIZE)
        self.positions = torch.nn.Embedding(64, HIDDEN_SIZE)
        self.attention = TinyAttention(change or dict)

    def embed(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        hidden: torch.Tensor = self.tokens(input_ids) + self.positions(position_ids)
        return hidden

    def forward(
        self,
        *,
        input_ids: torch.Tensor,
        position_ids: torch.Tensor,
        use_cache: bool,
        logits_to_keep: torch.Tensor,
    ) -> SimpleNamespace:
        assert not use_cache
        hidden = self.embed(input_ids, position_ids)
        hidden = hidden + self.attention(hidden, self.config)
        return SimpleNamespace(logits=hidden[:, logits_to_keep])


class CountingModel(TinyModel):
    """Takes a token's place in the batch for its position."""

    def embed(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        return super().embed(input_ids, torch.arange(position_ids.shape[1])[None])


class ShiftingModel(TinyModel):
    """Mixes each token with the one before it."""

    def embed(self, input_ids: torch.Tensor, position_ids: torch.Tensor) -> torch.Tensor:
        hidden = super().embed(input_ids, position_ids)
        return hidden + hidden.roll(1, dims=1)


def set_argument(name: str, value: object) -> Change:
    return lambda arguments: arguments.update({name: value})


def add_to_mask(arguments: dict[str, Any]) -> None:
    arguments["attention_mask"] = arguments["attention_mask"] + torch.arange(4)


def halve_values(arguments: dict[str, Any]) -> None:
    arguments["value"] = arguments["value"][:, :, :2]


def test_a_plain_causal_layer_is_found_with_its_sizes() -> None:
    model = TinyModel()

    (layer,) = find_attention_layers(model, max_model_len=64)

    assert layer.module is model.attention
    assert (layer.shape.num_kv_heads, layer.shape.key_size) == (1, HIDDEN_SIZE)


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (set_argument("position_bias", torch.ones(1)), "passes position_bias to its attention"),
        (set_argument("indices", torch.ones(1)), "passes indices to its attention"),
        (set_argument("dropout", 0.1), "drops scores at random"),
        (set_argument("sliding_window", 8), "hides other tokens than"),
        (add_to_mask, "adds something to the mask"),
        (halve_values, "keys and values that do not go together"),
    ],
)
def test_what_paged_attention_would_ignore_is_refused_by_name(change: Change, reason: str) -> None:
    with pytest.raises(ModelLoadError) as refusal:
        find_attention_layers(TinyModel(change), max_model_len=64)

    assert "TinyAttention" in str(refusal.value)
    assert reason in str(refusal.value)


def test_a_layer_without_a_mask_that_is_not_causal_is_refused() -> None:
    model = TinyModel(set_argument("attention_mask", None))
    model.attention.is_causal = False

    with pytest.raises(ModelLoadError, match="TinyAttention looks at later tokens"):
        find_attention_layers(model, max_model_len=64)


@pytest.mark.parametrize("model_class", [CountingModel, ShiftingModel])
def test_a_token_that_depends_on_its_place_in_the_batch_is_refused(
    model_class: type[TinyModel],
) -> None:
    with pytest.raises(ModelLoadError, match="does not depend on the token and its position alone"):
        find_attention_layers(model_class(), max_model_len=64)


def test_a_model_that_cannot_run_is_refused_with_what_went_wrong() -> None:
    with pytest.raises(ModelLoadError, match="a trial run fails with IndexError"):
        find_attention_layers(TinyModel(), max_model_len=1000)


def test_a_window_that_only_the_mask_knows_is_refused() -> None:
    model = TinyModel()
    model.config.sliding_window = 8
    model.attention.build_mask = create_sliding_window_causal_mask

    with pytest.raises(ModelLoadError, match="TinyAttention hides other tokens than"):
        find_attention_layers(model, max_model_len=64)


def test_a_window_that_mask_and_layer_agree_on_is_served() -> None:
    model = TinyModel(set_argument("sliding_window", 8))
    model.config.sliding_window = 8
    model.attention.build_mask = create_sliding_window_causal_mask

    assert len(find_attention_layers(model, max_model_len=64)) == 1
