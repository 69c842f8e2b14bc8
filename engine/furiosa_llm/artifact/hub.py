"""Finds the folder of a model that is given by its name on the Hugging Face hub."""

from __future__ import annotations

from pathlib import Path

from furiosa_llm.errors import ConfigError, ModelLoadError
from furiosa_llm.paths import is_there

_WEIGHTS = ("*.safetensors",)
_PICKLES = ("*.bin", "*.pt", "*.pth")
_REST = ("*.json", "*.jinja", "*.model", "*.tiktoken", "*.txt", "*.py")
_LEGAL = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*")
# The same weights once more, in other formats.
_NOT_LOADED = ("original/*", "onnx/*", "openvino/*", "*consolidated*.safetensors")


def find_model(model: str, *, revision: str | None = None, allow_pickle: bool = False) -> Path:
    """Returns the folder of a model; of one on the hub that of its snapshot in the cache.

    What is not in the cache is downloaded. If the hub cannot be reached, or must not be
    (HF_HUB_OFFLINE), what is in the cache will do.

    Args:
        model: A path or a hub id.
        revision: Branch, tag or commit on the hub; None for the main branch.
        allow_pickle: Whether to take pickled weights where there are no others.

    Raises:
        ConfigError: A revision is given for a path.
        ModelLoadError: The model is neither here nor to be had.
    """
    if is_there(model):
        if revision is not None:
            raise ConfigError(
                f"--revision {revision} is for a hub id, but {model} is a path; leave it out"
            )
        return Path(model)
    folder = _snapshot(model, revision, (*_WEIGHTS, *_REST, *_LEGAL))
    if allow_pickle and not any(folder.glob(_WEIGHTS[0])):
        folder = _snapshot(model, revision, (*_PICKLES, *_REST, *_LEGAL))
    return folder


def hide_downloads() -> None:
    """Draws no bars of downloads, in this process: a run has a display of its own."""
    from huggingface_hub.utils.tqdm import disable_progress_bars  # takes a while to load

    disable_progress_bars()


def _snapshot(model: str, revision: str | None, patterns: tuple[str, ...]) -> Path:
    from huggingface_hub import snapshot_download  # takes a while to load
    from huggingface_hub.errors import (
        GatedRepoError,
        HFValidationError,
        LocalEntryNotFoundError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    absent = (RepositoryNotFoundError, RevisionNotFoundError, LocalEntryNotFoundError)
    try:
        return Path(
            snapshot_download(
                model,
                revision=revision,
                allow_patterns=list(patterns),
                ignore_patterns=list(_NOT_LOADED),
            )
        )
    except HFValidationError as error:
        raise ModelLoadError(f"{_missing(model)}; check its name") from error
    except Exception as error:  # its HTTP library has errors of its own
        incomplete = getattr(error, "snapshot_path", None)
        if incomplete is not None:
            return Path(incomplete)  # it may do: the loader names what it lacks
        if isinstance(error, GatedRepoError) or not isinstance(error, absent):
            raise ModelLoadError(f"{model}: cannot be downloaded: {_reason(error)}") from error
        asked = "its name" if revision is None else f"its name and --revision {revision}"
        raise ModelLoadError(f"{_missing(model)} ({_reason(error)}); check {asked}") from error


def _missing(model: str) -> str:
    return f"{model}: no such model: neither a checkpoint folder nor a hub id that can be reached"


def _reason(error: Exception) -> str:
    """Returns the first two lines of a message: the second one may say what was not found."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return " ".join(lines[:2]) or type(error).__name__
