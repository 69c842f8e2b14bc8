from __future__ import annotations

from pathlib import Path

import pytest

from furiosa_llm.dataset.redaction import redacted, redacted_text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("https://me:hush@host/a/b?sig=hush&x=1 is gone", "https://host/a/b is gone"),
        ("https://me:hu@sh@host/a", "https://host/a"),
        ("https://hush@host/a", "https://host/a"),
        ("s3://bucket/k.jsonl?X-Amz-Signature=hush#hush", "s3://bucket/k.jsonl"),
        ("https://host/a#access_token=hush", "https://host/a"),
        (str(Path("https://me:hush@host/a?token=hush")), "https:/host/a"),
        ("/data/x.jsonl?token=hush&x=1", "/data/x.jsonl?token=***&x=1"),
        ("X-Amz-Security-Token=hush", "X-Amz-Security-Token=***"),
        ("Authorization: Bearer hush.hush.hush", "Authorization: Bearer ***"),
        ("no access with hf_HushHushHushHush!", "no access with ***!"),
    ],
)
def test_secrets_are_taken_out_of_a_text(text: str, expected: str) -> None:
    assert redacted_text(text) == expected


@pytest.mark.parametrize(
    "text",
    ["max_tokens=5", "/a/b?.jsonl", "a@b.example", "C:/data/x", "stop_token_ids", "http://h:80/a"],
)
def test_what_is_no_secret_stays(text: str) -> None:
    assert redacted_text(text) == text


def test_paths_are_texts(tmp_path: Path) -> None:
    assert redacted({"output": tmp_path}) == {"output": str(tmp_path)}
