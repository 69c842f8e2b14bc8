from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from transformers.utils import import_utils

from furiosa_llm.library_imports.quick_transformers import KeptOffers, Offers
from furiosa_llm.tokenization import Tokenizer
from tests.fresh_process import ROOT, run_code

# Tells all that transformers says it has and where, and whether it counts on torch.distributed.
SCRIPT = """
import hashlib, sys
from furiosa_llm.library_imports.quick_transformers import hasten_transformers
{first}
import transformers, transformers.models
from transformers.utils.import_utils import is_torch_distributed_available
said = []
for module in (transformers, transformers.models):
    said.append(sorted(module._class_to_module.items()))
    said.append(sorted((name, sorted(map(str, lacks)))
                       for name, lacks in module._object_missing_backend.items()))
    said.append(sorted(module._modules))
print(len(said[0]), hashlib.sha256(repr(said).encode()).hexdigest())
print(is_torch_distributed_available())
"""


class Reader:
    """Stands for transformers' own function."""

    def __init__(self) -> None:
        self.paths: list[str] = []

    def __call__(self, path: str) -> Offers:
        self.paths.append(path)
        return {"llama": {frozenset({"torch"}): {"modeling_llama": {"LlamaModel"}}}}


@pytest.fixture
def models(tmp_path: Path) -> Path:
    folder = tmp_path / "models"
    (folder / "llama").mkdir(parents=True)
    (folder / "__init__.py").write_text("")
    (folder / "llama" / "modeling_llama.py").write_text("__all__ = ['LlamaModel']")
    return folder


def test_a_second_process_reads_no_file_of_a_model(models: Path, tmp_path: Path) -> None:
    first, second = Reader(), Reader()
    file = tmp_path / "new" / "kept"

    found = KeptOffers(first, models, file)(models)
    found_again = KeptOffers(second, models, file)(str(models / "__init__.py"))

    assert found == found_again == Reader()("")
    assert (first.paths, second.paths) == ([str(models)], [])


def changes(models: Path, kept: Path) -> Iterator[None]:
    (models / "llama" / "modeling_llama.py").write_text("__all__ = ['LlamaModel', 'Other']")
    yield
    (models / "qwen").mkdir()
    (models / "qwen" / "configuration_qwen.py").write_text("")
    yield
    (models / "qwen" / "configuration_qwen.py").unlink()
    yield
    kept.write_bytes(b"damaged")
    yield
    kept.unlink()
    yield


def test_a_file_that_changes_comes_or_goes_is_noticed(models: Path, tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    KeptOffers(Reader(), models, kept)(models)

    for _ in changes(models, kept):
        reader = Reader()
        KeptOffers(reader, models, kept)(models)
        assert reader.paths == [str(models)]

    assert KeptOffers(Reader(), models, kept)(models) == Reader()("")


def test_without_a_file_to_keep_it_in_the_folder_is_read_once(models: Path) -> None:
    reader = Reader()
    offers = KeptOffers(reader, models, None)

    offers(models)
    offers(models / "__init__.py")
    offers(models / "llama" / "__init__.py")

    assert reader.paths == [str(models), str(models / "llama" / "__init__.py")]


def test_a_folder_that_cannot_be_written_costs_nothing_but_time(
    models: Path, tmp_path: Path
) -> None:
    (tmp_path / "file").write_text("")

    assert KeptOffers(Reader(), models, tmp_path / "file" / "kept")(models) == Reader()("")


def said_by_transformers(first: str) -> list[str]:
    return run_code(SCRIPT.format(first=first)).stdout.splitlines()


def test_transformers_offers_the_same_whether_it_was_hastened_or_not(tmp_path: Path) -> None:
    hasten = f"hasten_transformers({str(tmp_path)!r})"

    plain = said_by_transformers("")
    reading, kept = said_by_transformers(hasten), said_by_transformers(hasten)
    with_ranks = said_by_transformers(f"hasten_transformers({str(tmp_path)!r}, runs_ranks=True)")

    assert reading[0] == kept[0] == plain[0]
    assert with_ranks == plain
    assert (reading[1], kept[1]) == ("False", "False")
    assert len(list(tmp_path.rglob("transformers-*"))) == 1


def test_transformers_has_the_functions_that_are_replaced() -> None:
    assert callable(import_utils.create_import_structure_from_path)
    assert callable(import_utils.is_torch_distributed_available)


def test_a_tokenizer_needs_no_torch_and_a_process_without_it_is_not_told_to_install_it() -> None:
    said = run_code(
        "import sys\n"
        "from furiosa_llm.library_imports import quick_transformers\n"
        "quick_transformers.hasten_transformers(None)\n"
        "quick_transformers.leave_torch_out()\n"
        "from furiosa_llm.tokenization import Tokenizer\n"
        "tokenizer = Tokenizer('samples/tiny-llama')\n"
        "print(tokenizer.encode('12 + 30 ='), 'torch' in sys.modules)"
    )

    expected = Tokenizer(str(ROOT / "samples" / "tiny-llama")).encode("12 + 30 =")
    assert (said.stdout, said.stderr) == (f"{expected} False\n", "")
