from __future__ import annotations

import json

from tests.fresh_process import run_code

FIRST = """
import json, sys
from furiosa_llm.library_imports.meta_kernels import with_meta_kernels
from furiosa_llm.library_imports.quick_torch import hasten_torch
from furiosa_llm.library_imports.quick_transformers import hasten_transformers
hasten_torch()
hasten_transformers(None)
import torch
def is_loaded():
    return "activate_meta" in vars(torch._meta_registrations)
told = {"before": is_loaded()}
"""
LAST = """
told["after"] = is_loaded()
print(json.dumps(told))
"""


def tell(code: str) -> dict[str, object]:
    told: dict[str, object] = json.loads(run_code(FIRST + code + LAST).stdout.splitlines()[-1])
    return told


def test_a_model_is_outlined_without_them() -> None:
    told = tell("""
from transformers import AutoModelForCausalLM, LlamaConfig
with torch.device("meta"):
    model = with_meta_kernels(lambda: AutoModelForCausalLM.from_config(LlamaConfig()))
told["shape"] = list(model.lm_head.weight.shape)
told["has sympy"] = "sympy" in sys.modules
""")

    assert told["shape"] == [32000, 4096]
    assert (told["before"], told["after"], told["has sympy"]) == (False, False, False)


def test_they_are_loaded_where_a_model_asks_for_one() -> None:
    told = tell("""
from transformers import AutoModelForCausalLM, LlamaConfig
rope = {"rope_type": "llama3", "rope_theta": 1e4, "factor": 8.0, "low_freq_factor": 1.0,
        "high_freq_factor": 4.0, "original_max_position_embeddings": 2048}
config = LlamaConfig(rope_parameters=rope)
def outline():
    with torch.device("meta"):
        return AutoModelForCausalLM.from_config(config)
try:
    outline()
except NotImplementedError as error:
    told["alone"] = type(error).__name__
told["still"] = is_loaded()
told["shape"] = list(with_meta_kernels(outline).lm_head.weight.shape)
""")

    assert told["shape"] == [32000, 4096]
    assert told["alone"] == "NotImplementedError", "this version needs none: try another model"
    assert (told["still"], told["after"]) == (False, True)


def test_what_no_kernel_serves_is_refused_as_ever() -> None:
    told = tell("""
def outline():
    calls.append(1)
    raise NotImplementedError("no kernel")
calls = []
for _ in range(2):
    try:
        with_meta_kernels(outline)
    except NotImplementedError as error:
        told["error"] = str(error)
told["calls"] = len(calls)
""")

    assert told["error"] == "no kernel"
    assert told["calls"] == 3, "once more when they were loaded, and never again"


def test_tracing_brings_them_first_and_once() -> None:
    for module in ("torch._refs", "torch._inductor.decomposition"):
        told = tell(f"""
import {module}
told["name"] = {module}.__spec__.name
told["loader"] = type({module}.__spec__.loader).__name__
from torch._subclasses.fake_tensor import FakeTensorMode
with FakeTensorMode():
    x = torch.ones(3, 3)
    told["shape"] = list(torch.linalg.cholesky(torch.where(x > 0, x, x)).shape)
""")

        assert (told["before"], told["after"]) == (False, True), module
        assert (told["name"], told["shape"]) == (module, [3, 3])
        assert told["loader"] == "SourceFileLoader"


def test_asking_the_module_brings_the_whole() -> None:
    told = tell("told['name'] = torch._meta_registrations.activate_meta.__name__")

    assert (told["name"], told["after"]) == ("activate_meta", True)


def test_files_are_told_to_inspect_as_it_would_find_them() -> None:
    told = tell("""
import inspect
from furiosa_llm.library_imports.quick_torch import _MODULES_WITH_OPERATORS
files = {name: file for file, name in inspect.modulesbyfile.items()}
told["wrong"] = [
    name
    for name in _MODULES_WITH_OPERATORS
    if name in sys.modules and sys.modules[name].__file__ != files.get(name)
]
told["found"] = sum(name in sys.modules for name in _MODULES_WITH_OPERATORS)
""")

    assert told["wrong"] == []
    assert told["found"] == 3, "torch has moved a module"
