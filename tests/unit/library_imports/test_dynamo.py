from __future__ import annotations

import json

from tests.fresh_process import run_code

FIRST = """
import json, sys
from furiosa_llm.library_imports.dynamo import delay_dynamo
delay_dynamo()
import torch
def is_loaded():
    return "torch._dynamo.eval_frame" in sys.modules
"""
COMPILE = """
from transformers import AttentionInterface
told = {"before": is_loaded()}
modes, targets = [], []

@torch.compiler.disable
def plain(x):
    modes.append(torch.compiler.is_compiling())
    return x + 1

@torch.compiler.allow_in_graph
def whole(x):
    return x - 1

def backend(graph, inputs):
    targets.extend(node.target for node in graph.graph.nodes)
    return graph.forward

plain(torch.ones(1))
told["on its own"] = is_loaded()
told["disabled"] = torch.compile(lambda x: plain(x * 2), backend=backend)(torch.ones(1)).item()
told["allowed"] = torch.compile(lambda x: whole(x * 2), backend=backend)(torch.ones(1)).item()
told["after"] = is_loaded()
told["modes"] = modes
told["is whole"] = whole in targets
print(json.dumps(told))
"""


def tell(code: str) -> dict[str, object]:
    told: dict[str, object] = json.loads(run_code(FIRST + code).stdout.splitlines()[-1])
    return told


def test_the_compiler_is_loaded_when_something_is_compiled_and_knows_what_was_decorated() -> None:
    told = tell(COMPILE)

    assert told == {
        "before": False,
        "on its own": False,
        "disabled": 3.0,
        "allowed": 1.0,
        "after": True,
        "modes": [False, False],
        "is whole": True,
    }


def test_a_module_of_the_compiler_brings_the_whole() -> None:
    told = tell(
        "import torch._dynamo.config\n"
        "print(json.dumps({'type': type(torch._dynamo).__name__, 'is_loaded': is_loaded(),"
        " 'finders': [f for f in map(str, sys.meta_path) if 'furiosa' in f]}))"
    )

    assert told == {"type": "module", "is_loaded": True, "finders": []}
