"""Runs a few tokens through a model to see how it attends, and refuses what cannot be served.

transformers' models say what they need in many ways: keywords, masks, attributes. Whatever paged
attention would not honour has to be found here, since later it would give wrong answers in
silence.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from transformers import AttentionInterface
from transformers.masking_utils import AttentionMaskInterface

from furiosa_llm.errors import ModelLoadError
from furiosa_llm.modeling.layer_shape import LayerShape
from furiosa_llm.modeling.paged_attention import (
    ATTENTION_NAME,
    AttentionLayer,
    use_attention,
)

# Takes indices of a sequence, a head, a query and keys, and says which keys the query sees.
MaskFunction = Callable[[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor], torch.Tensor]

_PROBE_NAME = "furiosa_probe"
# The second sequence starts so many positions before the first, so that its last two tokens can
# be the first two of the other one, at the same positions.
_SHIFT = 2
_TOKENS = ((3, 4, 5, 6), (7, 8, 3, 4))
_HARMLESS_KEYWORDS = frozenset({"position_ids", "logits_to_keep"})


def find_attention_layers(
    model: torch.nn.Module, *, max_model_len: int, has_logits: bool = True
) -> list[AttentionLayer]:
    """Runs two short sequences through the model and returns the modules that attend, in order.

    Args:
        model: The model; or, without logits, what is below its output embedding.
        max_model_len: Longest sequence that it has to serve.
        has_logits: Whether its output has logits, or only hidden states.

    Raises:
        ModelLoadError: The model works in a way that a paged cache cannot serve.
    """
    probe = _Probe(max_model_len)
    AttentionInterface.register(_PROBE_NAME, probe.attend)
    AttentionMaskInterface.register(_PROBE_NAME, probe.build_mask)
    use_attention(model, _PROBE_NAME)
    device = next(model.parameters()).device
    first = max(max_model_len - len(_TOKENS[0]), _SHIFT)
    positions = torch.arange(first, first + len(_TOKENS[0]))
    inputs = {
        "input_ids": torch.tensor(_TOKENS, device=device),
        "position_ids": torch.stack([positions, positions - _SHIFT]).to(device),
    }
    kept = torch.tensor([0, _SHIFT], device=device)
    try:
        with torch.inference_mode():
            if has_logits:
                said = model(**inputs, use_cache=False, logits_to_keep=kept).logits  # [2, 2, V]
            else:
                said = model(**inputs, use_cache=False).last_hidden_state[:, kept]
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        raise ModelLoadError(f"a trial run fails with {type(error).__name__}: {error}") from error
    finally:
        layers, probe.layers = probe.layers, []  # transformers keeps the probe as long as it lives
    if not _is_close(said[0, 0], said[1, 1]):
        raise ModelLoadError("what it says of a token depends on where the token lies in a batch")
    use_attention(model, ATTENTION_NAME)
    return layers


@dataclass(frozen=True, slots=True)
class _MaskRule:
    """Which keys a query sees, and the size of a window or chunk if the model names one."""

    sees: MaskFunction
    local_size: int | None


class _Probe:
    """Notes which modules attend, and with what; each token sees no token but itself.

    In place of a mask it hands out a tensor whose elements all name the mask's rule, so that a
    layer that gets it unchanged can be told from one that adds something to it.
    """

    def __init__(self, max_model_len: int) -> None:
        self.layers: list[AttentionLayer] = []
        self._max_model_len = max_model_len
        self._rules: list[_MaskRule] = []
        self._checked: set[tuple[float, int | None]] = set()  # masks and windows that go together

    def build_mask(
        self,
        *,
        mask_function: MaskFunction,
        attention_mask: torch.Tensor | None = None,
        local_size: int | None = None,
        device: torch.device | None = None,
        **_: object,
    ) -> torch.Tensor:
        """What transformers calls when a model wants a mask."""
        if attention_mask is not None and not attention_mask.all():
            raise ModelLoadError("it hides some tokens from all others")
        self._rules.append(_MaskRule(mask_function, local_size))
        length = len(_TOKENS[0])
        return torch.full((2, 1, length, length), -float(len(self._rules)), device=device)

    def attend(  # noqa: PLR0913 - the signature is that of transformers
        self,
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        dropout: float = 0.0,
        scaling: float | None = None,  # noqa: ARG002 - served as it is, like the next two
        sliding_window: int | None = None,
        softcap: float | None = None,  # noqa: ARG002
        s_aux: torch.Tensor | None = None,  # noqa: ARG002
        is_causal: bool | None = None,
        **others: object,
    ) -> tuple[torch.Tensor, None]:
        """What transformers calls when a layer attends: [2, H, T, D] -> [2, T, H, E]."""
        name = type(module).__name__
        if any(layer.module is module for layer in self.layers):
            raise ModelLoadError(f"{name} attends twice in one pass")
        if is_causal is None:
            is_causal = getattr(module, "is_causal", True)
        if attention_mask is None and not is_causal:
            raise ModelLoadError(f"{name} looks at later tokens")
        if dropout:
            raise ModelLoadError(f"{name} drops scores at random")
        for keyword, argument in others.items():
            if keyword not in _HARMLESS_KEYWORDS and argument is not None and argument is not False:
                raise ModelLoadError(f"{name} passes {keyword} to its attention")
        self._check_mask(name, attention_mask, sliding_window)
        _check_tensors(name, query, key, value)
        shape = LayerShape(
            num_kv_heads=key.shape[1], key_size=key.shape[-1], value_size=value.shape[-1]
        )
        self.layers.append(AttentionLayer(module, query.shape[1], shape))
        own = value.repeat_interleave(query.shape[1] // value.shape[1], dim=1)
        return own.transpose(1, 2).contiguous(), None

    def _check_mask(self, name: str, mask: torch.Tensor | None, sliding_window: int | None) -> None:
        """Compares what the model's mask hides with what paged attention will hide."""
        if mask is None:
            return
        number = -mask.flatten()[0].item()
        is_known = number in range(1, len(self._rules) + 1)
        if not is_known or not (mask == -number).all():
            raise ModelLoadError(f"{name} adds something to the mask of its attention")
        if (number, sliding_window) in self._checked:
            return
        rule = self._rules[int(number) - 1]
        if not _hides_alike(rule, sliding_window, last_position=self._max_model_len - 1):
            raise ModelLoadError(
                f"{name} hides other tokens than later ones and those before its window"
            )
        self._checked.add((number, sliding_window))


def _hides_alike(rule: _MaskRule, sliding_window: int | None, *, last_position: int) -> bool:
    """Tells whether a query sees the keys up to its own, or only so many of them."""
    positions = {0, last_position, min(sliding_window or last_position, last_position)}
    try:
        return all(_sees_its_window(rule, position, sliding_window) for position in positions)
    except IndexError:
        # The rule looks the tokens up: in text, it has to be a plain one.
        length = len(_TOKENS[0])
        return rule.local_size == sliding_window and all(
            _sees_its_window(rule, position, sliding_window) for position in range(length - 1)
        )


def _sees_its_window(rule: _MaskRule, position: int, sliding_window: int | None) -> bool:
    first = torch.zeros((), dtype=torch.long)
    keys = torch.arange(position + 2)  # one of them lies in the future
    seen = rule.sees(first, first, torch.tensor(position), keys)
    expected = keys <= position
    if sliding_window is not None:
        expected &= keys > position - sliding_window
    return bool((seen == expected).all())


def _check_tensors(name: str, query: torch.Tensor, key: torch.Tensor, value: torch.Tensor) -> None:
    """Refuses odd shapes, and tokens that are not worked out one by one."""
    if key.shape[:3] != value.shape[:3] or key.shape[-1] != query.shape[-1]:
        raise ModelLoadError(f"{name} has keys and values that do not go together")
    if query.shape[2] != key.shape[2] or query.shape[1] % key.shape[1]:
        raise ModelLoadError(f"{name} has queries and keys that do not go together")
    for part in (query, key, value):
        if not _is_close(part[0, :, 0], part[1, :, _SHIFT]):
            raise ModelLoadError(
                f"what {name} is given for a token does not depend on the token and its position "
                "alone"
            )


def _is_close(one: torch.Tensor, other: torch.Tensor) -> bool:
    """Compares up to rounding, which may differ from one row of a batch to the next."""
    largest = float(one.abs().max())
    tolerance = 1e-3 if one.dtype == torch.float32 else 5e-2
    return bool(((one - other).abs() <= tolerance * largest).all())
