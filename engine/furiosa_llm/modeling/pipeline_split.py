"""Keeps one pipeline stage of a loaded model: some of its layers, and what comes before or after.

The layers of other stages give way to modules that hand their input on. The one before the
stage's first layer hands on what the stage before has sent, whatever it is given itself, and
the one after the stage's last layer sends what it is given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch
from torch import nn
from torch.utils.hooks import RemovableHandle
from transformers import PreTrainedModel

from furiosa_llm.errors import ConfigError

# What layers are given beside the hidden states: tensors that follow from the positions alone.
_POSITION_ARGUMENTS = frozenset(
    {"attention_mask", "cache_position", "position_embeddings", "position_ids"}
)


class StageLink(Protocol):
    """The way from one stage to the next.

    Attributes:
        waited_seconds: Time spent in `receive` so far.
    """

    waited_seconds: float

    def send(self, hidden: torch.Tensor) -> None:
        """Sends hidden states to the next stage. It does not wait until they are there."""

    def receive(self, like: torch.Tensor) -> torch.Tensor:
        """Waits for hidden states of the stage before: of the shape, type and device of `like`."""


class PipelineStage:
    """The part of a model that is left on one stage."""

    def __init__(self, layers: nn.ModuleList, kept: range) -> None:
        self.num_layers = len(kept)
        self.is_last = kept.stop == len(layers)
        self._kept = [layers[index] for index in kept]
        self._entry = layers[kept.start - 1] if kept.start > 0 else None
        self._exit = layers[kept.stop] if not self.is_last else None
        self._link: StageLink | None = None

    @property
    def waited_seconds(self) -> float:
        """Time spent waiting for the stage before so far."""
        return 0.0 if self._link is None else self._link.waited_seconds

    def connect(self, link: StageLink) -> None:
        """Lets the stage receive and send; until then, it hands its input through."""
        self._link = link
        for end in (self._entry, self._exit):
            if isinstance(end, _Entry | _Exit):
                end.link = link

    def watch(self) -> list[RemovableHandle]:
        """Refuses, until the handles are removed, layers that hand on more than hidden states."""
        handles = []
        for layer in self._kept:
            handles.append(layer.register_forward_pre_hook(_check_arguments, with_kwargs=True))
            handles.append(layer.register_forward_hook(_check_output))
        return handles


def check_num_stages(num_layers: int, num_stages: int) -> None:
    """Refuses stages that no layer would be left for.

    Raises:
        ConfigError: There are fewer layers than stages.
    """
    if num_layers < num_stages:
        raise ConfigError(
            f"the pipeline-parallel size ({num_stages}) exceeds the model's {num_layers} layers"
        )


def layers_of_stage(num_layers: int, *, stage: int, num_stages: int) -> range:
    """Returns a stage's layers. Stages differ by one layer at most, and the first ones have more.

    Raises:
        ConfigError: There are fewer layers than stages.
    """
    check_num_stages(num_layers, num_stages)
    size, num_larger = divmod(num_layers, num_stages)
    start = stage * size + min(stage, num_larger)
    return range(start, start + size + (stage < num_larger))


def keep_stage(model: PreTrainedModel, *, stage: int, num_stages: int) -> PipelineStage:
    """Cuts a model down to one of its stages.

    Raises:
        ConfigError: The architecture cannot be cut, or not in so many stages.
    """
    layers = _find_layers(model, num_stages)
    kept = layers_of_stage(len(layers), stage=stage, num_stages=num_stages)
    for index in range(len(layers)):
        if index == kept.start - 1:
            layers[index] = _Entry(layers[index])
        elif index == kept.stop:
            layers[index] = _Exit(layers[index])
        elif index not in kept:
            layers[index] = _Elsewhere(layers[index])
    if stage > 0:
        model.set_input_embeddings(_NoEmbedding(model.get_input_embeddings()))
    if stage < num_stages - 1:
        model.set_output_embeddings(nn.Identity())
    return PipelineStage(layers, kept)


class _Elsewhere(nn.Module):
    """A layer that another stage runs."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        for name, value in vars(layer).items():  # the model may ask a layer for its kind
            if isinstance(value, str | int) and not name.startswith("_"):
                setattr(self, name, value)

    def forward(self, hidden: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return hidden


class _Entry(_Elsewhere):
    """The last layer of the stage before."""

    link: StageLink | None = None

    def forward(self, hidden: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        return hidden if self.link is None else self.link.receive(hidden)


class _Exit(_Elsewhere):
    """The first layer of the stage after."""

    link: StageLink | None = None

    def forward(self, hidden: torch.Tensor, *_: object, **__: object) -> torch.Tensor:
        if self.link is not None:
            self.link.send(hidden)
        return hidden


class _NoEmbedding(nn.Module):
    """Stands for the embedding where no one reads its vectors; only their shape matters."""

    def __init__(self, embedding: nn.Module) -> None:
        super().__init__()
        weight = embedding.get_parameter("weight")
        self.register_buffer("_vector", weight.new_zeros(weight.shape[1]), persistent=False)

    def forward(self, input_ids: torch.Tensor) -> torch.Tensor:
        vector = self.get_buffer("_vector")
        return vector.expand(*input_ids.shape, vector.shape[0])


def _find_layers(model: PreTrainedModel, num_stages: int) -> nn.ModuleList:
    name = type(model).__name__
    plan: Mapping[str, object] = model.pp_plan or {}
    paths = [path for path in plan if path.rpartition(".")[2] == "layers"]
    layers = model.get_submodule(paths[0]) if len(paths) == 1 else None
    if not isinstance(layers, nn.ModuleList):
        raise ConfigError(
            f"{name} has no plan for cutting it into {num_stages} pipeline stages; use a "
            "pipeline-parallel size of 1"
        )
    return layers


def _check_arguments(layer: nn.Module, args: tuple[object, ...], kwargs: dict[str, object]) -> None:
    if len(args) < 1 or not isinstance(args[0], torch.Tensor):
        raise _refusal(layer, "is not given the hidden states first")
    others = {str(index): value for index, value in enumerate(args) if index > 0} | kwargs
    for name, value in others.items():
        if name not in _POSITION_ARGUMENTS and _has_tensor(value):
            raise _refusal(layer, f"is given other tensors beside the hidden states ({name})")


def _check_output(layer: nn.Module, args: tuple[torch.Tensor, ...], output: object) -> None:
    given = args[0]
    if not isinstance(output, torch.Tensor):
        raise _refusal(layer, "hands on more than one tensor")
    if output.shape != given.shape or output.dtype != given.dtype:
        raise _refusal(layer, "changes the shape or the type of the hidden states")


def _has_tensor(value: object) -> bool:
    if isinstance(value, Mapping):
        return any(_has_tensor(item) for item in value.values())
    if isinstance(value, list | tuple):
        return any(_has_tensor(item) for item in value)
    return isinstance(value, torch.Tensor)


def _refusal(layer: nn.Module, reason: str) -> ConfigError:
    return ConfigError(
        f"the model cannot be cut into pipeline stages: {type(layer).__name__} {reason}; use a "
        "pipeline-parallel size of 1"
    )
