"""A step that the device was told to run, and may not have done yet."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import torch

from furiosa_llm.execution.stopwatches import Stopwatch
from furiosa_llm.execution.token_chooser import ChosenTokens
from furiosa_llm.scheduler_output import StepResult


@dataclass(frozen=True, slots=True)
class LaunchedStep:
    """What a step brings. Any thread may wait for it, and more than once.

    Attributes:
        chosen: Its tokens, on the device and on their way to the host.
        watch: Times the forward pass, then the choice of the tokens.
    """

    chosen: ChosenTokens
    watch: Stopwatch

    @property
    def token_ids(self) -> torch.Tensor:
        """[S] int64: the tokens, on the device."""
        return self.chosen.token_ids

    def wait_for_token_ids(self) -> list[int]:
        """Waits for the device. Returns the tokens of the S sampled rows."""
        self.watch.wait()
        return self.chosen.read_token_ids()

    def result(self) -> StepResult:
        """Waits for the device. Returns all that the step brings."""
        model_seconds, sample_seconds = self.watch.wait()
        return dataclasses.replace(
            self.chosen.read(), model_seconds=model_seconds, sample_seconds=sample_seconds
        )
