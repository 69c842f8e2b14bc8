"""Replaces modules of a loaded model by faster ones, where a trial run shows that they agree.

transformers has a hundred ways to write the same layer. Which of them is the one that a fused
module computes is not read from names: both are given the same input, and what they return is
compared.
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from furiosa_llm.errors import ModelLoadError
from furiosa_llm.modeling import paged_attention
from furiosa_llm.modeling.attention_cpu import CpuAttention
from furiosa_llm.modeling.attention_params import AttentionParams
from furiosa_llm.modeling.core_threads import CoreThreads
from furiosa_llm.modeling.fused_attention import FusedAttention
from furiosa_llm.modeling.fused_decoder import FusedDecoderLayer, fused_decoders
from furiosa_llm.modeling.fused_modules import FusedGatedMlp, FusedRmsNorm
from furiosa_llm.modeling.layer_cache import LayerCache
from furiosa_llm.modeling.packed_linear import Int8Linear, PackedLinear, can_pack
from furiosa_llm.modeling.paged_attention import AttentionLayer, CurrentStep
from furiosa_llm.modeling.step_layout import StepLayout

_logger = logging.getLogger(__name__)

_NUM_TOKENS = 6
_BLOCK_SIZE = 16
_KEPT = (2, 5)  # tokens whose logits are asked for in a step of those
# Of the largest element of what is compared. Sums in another order differ by a hundredth of it.
_TOLERANCE = 3e-5


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
    trial = _Trial(model, layers, max_model_len=max_model_len)
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
    for layer, decoder in fused_decoders(model).items():
        swaps.put(layer, decoder)
    if not trial.says(expected, fused):
        swaps.undo()
    return tuple(fused)


def quantize(model: nn.Module) -> None:
    """Lets a fused model compute its linear layers with 8 bits.

    Raises:
        ModelLoadError: It has none that can.
    """
    swaps = _Swaps(model)
    for module in swaps.remaining():
        if type(module) is PackedLinear:
            swaps.put(module, Int8Linear.of_packed(module))
    if not swaps:
        raise ModelLoadError("it has no linear layer that can be computed with 8 bits")
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
        if isinstance(module, PackedLinear | FusedDecoderLayer):
            module.threads = threads


@dataclass(frozen=True, slots=True)
class _Call:
    """What a module was given and what it returned."""

    arguments: tuple[Any, ...]
    keywords: dict[str, Any]
    output: Any


@dataclass(frozen=True, slots=True)
class _Attended:
    """What an attention module asked for: queries, keys and values of [T, heads, D]."""

    query: torch.Tensor
    key: torch.Tensor
    value: torch.Tensor
    params: AttentionParams


class _Trial:
    """Runs a few tokens through a model and notes what its modules do."""

    def __init__(
        self, model: nn.Module, layers: Sequence[AttentionLayer], *, max_model_len: int
    ) -> None:
        self.calls: dict[nn.Module, _Call] = {}
        self.attended: dict[nn.Module, _Attended] = {}
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
        caches = [
            LayerCache.allocate(
                layer.shape, num_blocks=1, block_size=_BLOCK_SIZE, device=torch.device("cpu")
            )
            for layer in layers
        ]
        self._modules_of_caches = {
            id(cache): layer.module for cache, layer in zip(caches, layers, strict=True)
        }
        paged_attention.bind(layers, caches, CurrentStep(_layout(keep)), backend)
        with torch.inference_mode():
            logits: torch.Tensor = self._model(
                input_ids=torch.arange(3, 3 + _NUM_TOKENS)[None],
                position_ids=torch.tensor(self._positions)[None],
                use_cache=False,
                logits_to_keep=torch.tensor(range(_NUM_TOKENS) if keep is None else keep),
            ).logits
        return logits

    def _note(self, module: nn.Module, arguments: Any, keywords: Any, output: Any) -> None:
        if module in self.calls:
            output = None  # it is called more than once: what it does is not one thing
        self.calls[module] = _Call(arguments, keywords, output)

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
        self.attended[module] = _Attended(query, key, value, params)
        return CpuAttention(CoreThreads(1))(query, key, value, cache, layout, params)


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

    def __bool__(self) -> bool:
        return bool(self._originals)

    def undo(self) -> None:
        """Puts all modules back."""
        for name, module in self._originals.items():
            self._model.set_submodule(name, module)


def _swap_attention(layer: AttentionLayer, swaps: _Swaps, trial: _Trial) -> AttentionLayer:
    attention = _fused_attention(layer, trial)
    if attention is None:
        return layer
    swaps.put(layer.module, attention)
    return dataclasses.replace(layer, module=attention)


def _fused_attention(layer: AttentionLayer, trial: _Trial) -> FusedAttention | None:
    call, attended = trial.calls.get(layer.module), trial.attended.get(layer.module)
    if call is None or attended is None or not isinstance(call.output, tuple):
        return None
    hidden_states = call.keywords.get("hidden_states", *call.arguments[:1])
    rotation = _rotation(call.keywords.get("position_embeddings"), layer.shape.key_size)
    if rotation is None:
        return None
    for candidate in FusedAttention.candidates(layer.module, layer.shape, attended.params):
        cache = LayerCache.allocate(
            layer.shape, num_blocks=1, block_size=_BLOCK_SIZE, device=torch.device("cpu")
        )
        with torch.inference_mode():
            projected = candidate.project(hidden_states, rotation, cache, torch.arange(_NUM_TOKENS))
        query = torch.from_numpy(projected)[:, : attended.query[0].numel()]
        if (
            is_close(query, attended.query.flatten(1))
            and is_close(cache.keys[0, :, :, :_NUM_TOKENS].permute(2, 0, 1), attended.key)
            and is_close(cache.values[0, :, :_NUM_TOKENS].transpose(0, 1), attended.value)
        ):
            return candidate
    return None


def _fused(module: nn.Module, call: _Call | None) -> nn.Module | None:
    """Returns a norm or an MLP that computes what a module computed."""
    if call is None or not isinstance(call.output, torch.Tensor) or len(call.arguments) != 1:
        return None
    mlp = FusedGatedMlp.of(module)
    candidates: list[nn.Module] = [*FusedRmsNorm.candidates(module)] if mlp is None else [mlp]
    with torch.inference_mode():
        found = [c for c in candidates if is_close(c(*call.arguments), call.output)]
    return found[0] if found else None


def _packed(module: nn.Module, call: _Call | None) -> PackedLinear | None:
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
            cos.shape == sin.shape == (1, _NUM_TOKENS, cos.shape[-1])
            and cos.shape[-1] <= head_size
            and cos.dtype == sin.dtype == torch.float32
        ):
            return cos, sin
    return None


def is_close(actual: torch.Tensor, expected: torch.Tensor) -> bool:
    """Tells whether two results differ by no more than the order of their sums can explain."""
    if actual.shape != expected.shape or actual.dtype != expected.dtype:
        return False
    largest = expected.abs().max().item()
    return (actual - expected).abs().max().item() <= _TOLERANCE * largest


def _layout(keep: Sequence[int] | None = None) -> StepLayout:
    """One request of a few tokens, in one block; of some, logits are asked for."""
    kept = None if keep is None else torch.tensor(keep)
    return StepLayout(
        slot_mapping=torch.arange(_NUM_TOKENS),
        query_start_loc=torch.tensor([0, _NUM_TOKENS], dtype=torch.int32),
        seq_lens=torch.tensor([_NUM_TOKENS], dtype=torch.int32),
        block_tables=torch.zeros(1, 1, dtype=torch.int32),
        tasks=torch.tensor([[0, 0, _NUM_TOKENS]], dtype=torch.int32),
        kept=kept,
        kept_tasks=None
        if keep is None
        else torch.tensor([[0, token, token + 1] for token in keep], dtype=torch.int32),
    )
