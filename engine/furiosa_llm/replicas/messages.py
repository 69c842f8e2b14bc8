"""What passes between the parent, the launcher and the replicas."""

from __future__ import annotations

from dataclasses import dataclass

from furiosa_llm.config import EngineArgs
from furiosa_llm.engine_limits import EngineLimits
from furiosa_llm.errors import FuriosaLLMError
from furiosa_llm.outputs import RequestOutput, StepStats
from furiosa_llm.replicas.placement import Placement
from furiosa_llm.request import TokenizedPrompt


@dataclass(frozen=True, slots=True)
class Launch:
    """To the launcher, once: what every replica runs, and when the engine started."""

    args: EngineArgs
    placement: Placement
    start_time: float


@dataclass(frozen=True, slots=True)
class Launched:
    """From the launcher: it is ready to start replicas."""


@dataclass(frozen=True, slots=True)
class Started:
    """From a replica, first of all: it is ready for prompts."""

    limits: EngineLimits


@dataclass(frozen=True, slots=True)
class NotStarted:
    """From the launcher or a replica: what was asked for cannot be run. It ends."""

    error: FuriosaLLMError


@dataclass(frozen=True, slots=True)
class Start:
    """To the launcher: start a replica. The replica's end of its connection follows."""

    replica: int


@dataclass(frozen=True, slots=True)
class Reap:
    """To the launcher: a replica has closed its connection; wait until its processes are gone."""

    replica: int


@dataclass(frozen=True, slots=True)
class Reaped:
    """From the launcher: how the replica ended, as `died of signal 9` or `exited with code 1`."""

    reason: str


@dataclass(frozen=True, slots=True)
class Add:
    """To a replica: prompts to answer."""

    prompts: tuple[TokenizedPrompt, ...]


@dataclass(frozen=True, slots=True)
class Abort:
    """To a replica: prompts that are not wanted any more."""

    request_ids: tuple[str, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """From a replica: what has happened since its last report.

    Attributes:
        outputs: Without the prompts, which the parent has.
        steps: The account of each step.
        num_received: Prompts that it has been given since it started.
        num_waiting_tokens: Tokens of those prompts that have not started.
    """

    outputs: tuple[RequestOutput, ...]
    steps: tuple[StepStats, ...]
    num_received: int
    num_waiting_tokens: int


@dataclass(frozen=True, slots=True)
class Failed:
    """From a replica: it cannot go on, and ends."""

    reason: str
