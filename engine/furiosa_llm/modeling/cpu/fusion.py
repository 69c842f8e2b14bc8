"""Replaces modules of a loaded model by faster ones, where a trial run shows that they agree.

transformers has a hundred ways to write the same layer. Which of them is the one that a fused
module computes is not read from names: both are given the same input, and what they return is
compared.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence

import torch
from torch import nn

from furiosa_llm.errors import ModelLoadError
from furiosa_llm.modeling.cpu.core_threads import CoreThreads
from furiosa_llm.modeling.cpu.fused_attention import FusedAttention
from furiosa_llm.modeling.cpu.fused_decoder import FusedDecoder, FusedDecoderLayer, fused_decoders
from furiosa_llm.modeling.cpu.fused_modules import FusedGatedMlp, FusedRmsNorm
from furiosa_llm.modeling.cpu.fusion_trial import NUM_TOKENS, Call, Trial, is_close, new_cache
from furiosa_llm.modeling.cpu.packed_linear import Int8Linear, PackedLinear, can_pack
from furiosa_llm.modeling.paged_attention import AttentionLayer

_logger = logging.getLogger(__name__)


def fuse(
    model: nn.Module, layers: Sequence[AttentionLayer], *, max_model_len: int
) -> tuple[AttentionLayer, ...]:
    """Replaces what can be replaced in a model on a CPU, and returns its attention layers.

    A model that says anything else afterwards is left as it was.

    Args:
        model: Changed.
        layers: Those that attend.
        max_model_len: Longest sequence that it has to serve.
    """
    trial = Trial(model, layers, max_model_len=max_model_len)
    expected = trial.run()
    swaps = _Swaps(model)
    fused = [_swap_attention(layer, swaps, trial) for layer in layers]
    for module in swaps.remaining():
        replacement = _fused(module, trial.calls.get(module))
        if replacement is not None:
            swaps.put(module, replacement)
    for module in swaps.remaining():
        packed = _packed(module, trial.calls.get(module))
        if packed is not None:
            swaps.put(module, packed)
    if not trial.says(expected, fused):
        _logger.info("%s is left as it is: fused, it says something else", type(model).__name__)
        swaps.undo()
        return tuple(layers)
    swaps = _Swaps(model)
    for layer, decoder in fused_decoders(model, trial.calls).items():
        swaps.put(layer, decoder)
    if not trial.says(expected, fused):
        swaps.undo()
    return tuple(fused)


def quantize(model: nn.Module) -> None:
    """Lets a fused model compute its linear layers with 8 bits.

    Raises:
        ModelLoadError: It has none that can.
    """
    names = [name for name, module in model.named_modules() if type(module) is PackedLinear]
    if not names:
        raise ModelLoadError("it has no linear layer that can be computed with 8 bits")
    for name in names:
        linear = model.get_submodule(name)
        assert isinstance(linear, PackedLinear)
        model.set_submodule(name, Int8Linear.of_packed(linear))
    for module in model.modules():
        if isinstance(module, FusedDecoderLayer):
            module.take_weights()


def make_deterministic(model: nn.Module) -> None:
    """Lets a fused model compute a token in the same way whatever runs beside it.

    Raises:
        ModelLoadError: It has matrices that are multiplied by something that is not ours.
    """
    for module in model.modules():
        has_matrix = any(parameter.ndim > 1 for parameter in module.parameters(recurse=False))
        if has_matrix and not isinstance(module, nn.Embedding):
            raise ModelLoadError(
                f"{type(module).__name__} may round otherwise in a batch than alone; run it "
                "without --deterministic"
            )


def use_threads(model: nn.Module, threads: CoreThreads) -> None:
    """Lets the fused modules of a model compute with these threads."""
    for module in model.modules():
        if isinstance(module, PackedLinear | FusedDecoder):
            module.threads = threads


class _Swaps:
    """Replaces modules of a model, and can put them back."""

    def __init__(self, model: nn.Module) -> None:
        self._model = model
        self._names = {module: name for name, module in model.named_modules()}
        self._originals: dict[str, nn.Module] = {}

    def put(self, module: nn.Module, replacement: nn.Module) -> None:
        """Puts a module in the place of another."""
        name = self._names[module]
        self._originals[name] = module
        self._model.set_submodule(name, replacement)

    def remaining(self) -> Iterator[nn.Module]:
        """Modules that stand where they stood, and are part of no replacement."""
        return iter([module for module in self._model.modules() if module in self._names])

    def undo(self) -> None:
        """Puts all modules back."""
        for name, module in self._originals.items():
            self._model.set_submodule(name, module)


def _swap_attention(layer: AttentionLayer, swaps: _Swaps, trial: Trial) -> AttentionLayer:
    attention = _fused_attention(layer, trial)
    if attention is None:
        return layer
    swaps.put(layer.module, attention)
    return dataclasses.replace(layer, module=attention)


def _fused_attention(layer: AttentionLayer, trial: Trial) -> FusedAttention | None:
    call, attended = trial.calls.get(layer.module), trial.attended.get(layer.module)
    if call is None or attended is None or not isinstance(call.output, tuple):
        return None
    hidden_states = call.keywords.get("hidden_states", *call.arguments[:1])
    rotation = _rotation(call.keywords.get("position_embeddings"), layer.shape.key_size)
    if rotation is None:
        return None
    for candidate in FusedAttention.candidates(layer.module, layer.shape, attended.params):
        cache = new_cache(layer.shape)
        with torch.inference_mode():
            projected = candidate.project(hidden_states, rotation, cache, torch.arange(NUM_TOKENS))
        query = torch.from_numpy(projected)[:, : attended.query[0].numel()]
        if (
            is_close(query, attended.query.flatten(1))
            and is_close(cache.keys[0, :, :, :NUM_TOKENS].permute(2, 0, 1), attended.key)
            and is_close(cache.values[0, :, :NUM_TOKENS].transpose(0, 1), attended.value)
        ):
            return candidate
    return None


def _fused(module: nn.Module, call: Call | None) -> nn.Module | None:
    """Returns a norm or an MLP that computes what a module computed."""
    if call is None or not isinstance(call.output, torch.Tensor) or len(call.arguments) != 1:
        return None
    mlp = FusedGatedMlp.of(module)
    candidates: list[nn.Module] = [*FusedRmsNorm.candidates(module)] if mlp is None else [mlp]
    with torch.inference_mode():
        found = [c for c in candidates if is_close(c(*call.arguments), call.output)]
    return found[0] if found else None


def _packed(module: nn.Module, call: Call | None) -> PackedLinear | None:
    """Returns a linear layer, unless it was seen to compute something else."""
    if not can_pack(module):
        return None
    packed = PackedLinear.of(module)
    if call is None or not isinstance(call.output, torch.Tensor):
        return packed
    with torch.inference_mode():
        return packed if is_close(packed(*call.arguments), call.output) else None


def _rotation(embeddings: object, head_size: int) -> tuple[torch.Tensor, torch.Tensor] | None:
    """Returns cosines and sines [1, T, P], if that is what a layer was given."""
    match embeddings:
        case (torch.Tensor() as cos, torch.Tensor() as sin) if (
            cos.shape == sin.shape == (1, NUM_TOKENS, cos.shape[-1])
            and cos.shape[-1] <= head_size
            and cos.dtype == sin.dtype == torch.float32
        ):
            return cos, sin
    return None
