"""What an import may cost, seen from a fresh interpreter."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import furiosa_llm

ROOT = Path(__file__).parents[2]
HEAVY = ("torch", "transformers", "numba", "pyarrow", "datasets")


def modules_after(code: str) -> set[str]:
    """The top-level modules that are loaded once `code` has run."""
    script = f"import sys\n{code}\nprint(*{{name.partition('.')[0] for name in sys.modules}})"
    paths = os.pathsep.join([str(ROOT / "engine"), str(ROOT)])
    result = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": paths},
    )
    return set(result.stdout.split())


def test_importing_the_package_loads_no_heavy_library() -> None:
    loaded = modules_after(
        "import furiosa_llm\nfuriosa_llm.SamplingParams(), furiosa_llm.EngineArgs"
    )

    assert loaded.isdisjoint(HEAVY)


def test_importing_what_runs_a_batch_loads_no_torch() -> None:
    loaded = modules_after("import furiosa_llm\nfuriosa_llm.run_batch_job")

    assert "pyarrow" in loaded
    assert loaded.isdisjoint({"torch", "transformers", "numba", "datasets", "pandas"})


@pytest.mark.skipif(
    torch.version.cuda is not None or torch.version.hip is not None, reason="built for GPUs"
)
def test_a_torch_that_was_built_for_no_gpu_need_not_be_asked_for_them() -> None:
    code = "from furiosa_llm.machine_limits import count_gpus\nassert count_gpus() == 0"

    assert "torch" not in modules_after(code)


def test_every_public_name_is_there_and_documented() -> None:
    docs = {name: getattr(furiosa_llm, name).__doc__ or "" for name in furiosa_llm.__all__}

    assert [name for name, doc in docs.items() if not doc.strip()] == []
    # What dataclasses write themselves is the signature.
    assert [name for name, doc in docs.items() if doc.startswith(f"{name}(")] == []
    assert set(furiosa_llm.__all__) <= set(dir(furiosa_llm))
