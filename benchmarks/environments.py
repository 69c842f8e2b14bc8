"""The environments that peers run in: one for each, made from wheels.

python -m benchmarks.environments --folder .bench/environments
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import venv
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

REQUIREMENTS = Path(__file__).parent / "requirements"
DEFAULT_FOLDER = Path(".bench/environments")


@dataclass(frozen=True, slots=True, kw_only=True)
class Environment:
    """What a peer's environment is made of; its requirements have the peer's name.

    Attributes:
        module: What has to be importable.
        unwanted: Distributions to take out again: their builds do not fit the CPU's torch.
    """

    module: str
    unwanted: tuple[str, ...] = ()


ENVIRONMENTS: Mapping[str, Environment] = {
    "openvino": Environment(module="openvino_genai"),
    "llama_cpp": Environment(module="llama_cpp"),
    "vllm": Environment(module="vllm", unwanted=("torchvision", "torchaudio", "torchcodec")),
}


def python_of(name: str, folder: Path) -> Path | None:
    """Returns the interpreter of a peer's environment; None if the peer is not installed there."""
    python = folder.absolute() / name / "bin" / "python"
    script = f"import importlib.util as u; raise SystemExit(not u.find_spec({_module(name)!r}))"
    if not python.exists() or subprocess.run([python, "-c", script], check=False).returncode:
        return None
    return python


def install(name: str, folder: Path) -> bool:
    """Makes a peer's environment; tells whether that went well."""
    target = folder.absolute() / name
    venv.create(target, with_pip=True)
    pip = [str(target / "bin" / "python"), "-m", "pip"]
    requirements = str(REQUIREMENTS / f"{name}.txt")
    command = [*pip, "install", "--quiet", "--requirement", requirements]
    if subprocess.run(command, check=False).returncode:
        return False
    if unwanted := ENVIRONMENTS[name].unwanted:
        subprocess.run([*pip, "uninstall", "--quiet", "--yes", *unwanted], check=False)
    return True


def main() -> None:
    """Makes the environments that are missing. One that cannot be made is said to be so."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="PEER", help=", ".join(ENVIRONMENTS))
    parser.add_argument("--folder", type=Path, default=DEFAULT_FOLDER)
    args = parser.parse_args()
    for name in args.names or ENVIRONMENTS:
        if python_of(name, args.folder) is None:
            print(f"installing {name} in {args.folder / name}", file=sys.stderr)
            if not install(name, args.folder):
                print(f"{name} cannot be installed here; it is left out", file=sys.stderr)


def _module(name: str) -> str:
    return ENVIRONMENTS[name].module


if __name__ == "__main__":
    main()
