"""The tensors of one forward pass. The letters of shapes are those of `step_layout`."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from furiosa_llm.execution.block_tables import BlockTables
from furiosa_llm.execution.staging import PackedArrays
from furiosa_llm.execution.step_arrays import kept_arrays, step_arrays
from furiosa_llm.modeling.step_layout import StepLayout
from furiosa_llm.scheduler_output import PromptScoring, SamplingInputs, SchedulerOutput


@dataclass(frozen=True, slots=True, kw_only=True)
class InputBatch:
    """The tensors of one forward pass, all on one device."""

    input_ids: torch.Tensor  # [T] int64; where one is pending, it has yet to be filled in
    positions: torch.Tensor  # [T] int64, position of each token in its request
    layout: StepLayout
    logits_indices: torch.Tensor  # [S + P] int64, tokens whose logits are sampled, then scored
    sampled_request_ids: tuple[int, ...]  # S of them, on the host
    sampling: tuple[SamplingInputs, ...]  # S of them, on the host; tokens may be pending
    scored_request_ids: tuple[int, ...]  # those with prompt tokens to score
    scoring: tuple[PromptScoring, ...]  # as many; P tokens in all

    @classmethod
    def build(
        cls,
        step: SchedulerOutput,
        block_tables: BlockTables,
        *,
        block_size: int,
        device: torch.device,
    ) -> InputBatch:
        """Lays the tokens of all requests end to end, and brings them to the device."""
        tables = block_tables.of(step.requests)
        arrays = step_arrays(step.requests, tables, block_size=block_size)
        if device.type == "cpu":
            arrays |= kept_arrays(arrays)
        return cls.of(step, PackedArrays.of(arrays, device).to(device))

    @classmethod
    def of(cls, step: SchedulerOutput, tensors: Mapping[str, torch.Tensor]) -> InputBatch:
        """Takes the tensors that `step_arrays` laid out, wherever they are now."""
        own = {name: tensors[name] for name in ("input_ids", "positions", "logits_indices")}
        layout = {name: tensor for name, tensor in tensors.items() if name not in own}
        requests = step.requests
        scored = [request for request in requests if request.scoring is not None]
        return cls(
            **own,
            layout=StepLayout(
                **layout, max_query_len=max(len(request.token_ids) for request in requests)
            ),
            sampled_request_ids=tuple(
                request.request_id for request in requests if request.sampling is not None
            ),
            sampling=tuple(
                request.sampling for request in requests if request.sampling is not None
            ),
            scored_request_ids=tuple(request.request_id for request in scored),
            scoring=tuple(request.scoring for request in scored if request.scoring is not None),
        )
