"""Checks of single options, with messages that name the option and show the value."""

from __future__ import annotations

from furiosa_llm.errors import ConfigError


def require_one_of(name: str, value: object, allowed: tuple[object, ...]) -> None:
    """Refuses a value that is none of those allowed.

    Raises:
        ConfigError: It is none.
    """
    if value not in allowed:
        raise ConfigError(f"{name} must be one of {', '.join(map(str, allowed))}, got {value!r}")


def require_utilization(share: float) -> None:
    """Refuses a share of a GPU's memory that is none.

    Raises:
        ConfigError: It is not in (0, 1].
    """
    if not 0 < share <= 1:
        raise ConfigError(f"gpu_memory_utilization must be in (0, 1], got {share}")


def require_room_for_each(max_num_batched_tokens: int | None, max_num_seqs: int | None) -> None:
    """Refuses steps that are too small for the requests that run; None is not decided yet.

    Raises:
        ConfigError: Fewer tokens than requests are allowed.
    """
    if max_num_batched_tokens is None or max_num_seqs is None:
        return
    if max_num_batched_tokens < max_num_seqs:
        raise ConfigError(
            f"max_num_batched_tokens ({max_num_batched_tokens}) must be at least "
            f"max_num_seqs ({max_num_seqs}), so that every running request can have one "
            "token in a step"
        )


def require_positive(owner: object, names: tuple[str, ...]) -> None:
    """Refuses attributes below 1; None is not decided yet.

    Raises:
        ConfigError: One is.
    """
    for name in names:
        value = getattr(owner, name)
        if value is not None and value < 1:
            raise ConfigError(f"{name} must be at least 1, got {value}")


def require_ratio(ratio: float) -> None:
    """Refuses a share of spare blocks that would leave none for use.

    Raises:
        ConfigError: It is not in [0, 1).
    """
    if not 0 <= ratio < 1:
        raise ConfigError(f"spare_blocks_ratio must be in [0, 1), got {ratio}")
