"""How many replicas a plain `cpu` should hold.

Measured on two cores with models of 0.8, 135 and 362 million parameters in float32: see
`docs/parallelism.md`.
"""

from __future__ import annotations

from pathlib import Path

from furiosa_llm.errors import ConfigError

# For less, a second process with its Python is not worth its memory.
MIN_SECONDS_OF_WORK = 5.0
MIN_PROMPTS_OF_REPLICA = 8  # with fewer rows in a step, reading the weights takes the time
REPLICA_BYTES = 2**30  # beside the weights, which are shared
PROCESS_BYTES = 2**28  # that none can do without

# One core, prompts of 145 tokens and answers of 80: 0.75 s a prompt at 135 million parameters.
_SECONDS_PER_WEIGHT_BYTE = 1.4e-9
_SECONDS_PER_PROMPT = 1e-3


def choose_num_replicas(
    *, num_cores: int, weights_bytes: int | None, available_bytes: int, num_prompts: int | None
) -> int:
    """Returns one replica for each core where there is work and memory for so many, else fewer.

    Single-threaded replicas on cores of their own need not wait for each other, as threads that
    share a step do.

    Args:
        num_cores: Cores that this process may use.
        weights_bytes: Of the checkpoint; None if it is not on this machine yet.
        available_bytes: Memory that is free.
        num_prompts: How many will come; None if that is not known.
    """
    if num_prompts is None or weights_bytes is None:
        return 1
    seconds = num_prompts * (weights_bytes * _SECONDS_PER_WEIGHT_BYTE + _SECONDS_PER_PROMPT)
    if seconds < MIN_SECONDS_OF_WORK:
        return 1
    # Weights of two bytes become float32.
    num_fitting = (available_bytes - 2 * weights_bytes) // REPLICA_BYTES
    return max(min(num_cores, num_prompts // MIN_PROMPTS_OF_REPLICA, num_fitting), 1)


def check_fits_memory(num_processes: int, *, available_bytes: int) -> None:
    """Refuses more processes than the memory holds, whatever the model.

    Raises:
        ConfigError: They do not fit.
    """
    if num_processes * PROCESS_BYTES > available_bytes:
        raise ConfigError(
            f"{num_processes} processes need {num_processes * PROCESS_BYTES / 2**30:.1f} GiB of "
            f"memory beside the weights, but {available_bytes / 2**30:.1f} GiB are free; lower "
            "--data-parallel-size, --pipeline-parallel-size or --tensor-parallel-size"
        )


def weights_bytes(model: str) -> int | None:
    """Returns the size of a checkpoint's weights; None for one that is not in a folder here."""
    files = list(Path(model).glob("*.safetensors"))
    return sum(file.stat().st_size for file in files) if files else None
