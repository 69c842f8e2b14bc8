from __future__ import annotations

import json
from pathlib import Path

from furiosa_llm.artifact_builder.source import companion_files, config_with_dtype


def test_what_is_not_part_of_the_checkpoint_stays_behind(tmp_path: Path) -> None:
    taken = ["LICENSE", "chat_template.jinja", "merges.txt", "tokenizer.json", "tokenizer.model"]
    left = [
        "README.md",
        "artifact.json",
        "config.json",  # is written anew
        "model.safetensors",
        "model.safetensors.index.json",
        "modeling_own.py",
        "runtime_config.json",
    ]
    for name in (*taken, *left):
        (tmp_path / name).touch()
    (tmp_path / "folder.json").mkdir()
    (tmp_path / "additional_chat_templates").mkdir()
    (tmp_path / "additional_chat_templates" / "tools.jinja").touch()
    template = "additional_chat_templates/tools.jinja"

    assert companion_files(tmp_path, with_code=False) == sorted([*taken, template])
    assert companion_files(tmp_path, with_code=True) == sorted([*taken, template, left[-2]])


def test_a_config_names_the_new_type_wherever_it_named_the_old_one(tmp_path: Path) -> None:
    parts = {"text_config": {"torch_dtype": "float32", "size": 3}, "vision_config": {"size": 4}}
    config = {"torch_dtype": "float32", "model_type": "x", **parts}
    (tmp_path / "config.json").write_text(json.dumps(config))

    assert json.loads(config_with_dtype(tmp_path, "bfloat16")) == {
        "dtype": "bfloat16",
        "model_type": "x",
        "text_config": {"dtype": "bfloat16", "size": 3},
        "vision_config": {"size": 4},
    }
