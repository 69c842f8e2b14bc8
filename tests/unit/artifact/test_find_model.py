from __future__ import annotations

import errno
import os
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from threading import Thread

import pytest
from huggingface_hub import close_session, constants

from furiosa_llm.artifact.defaults import resolve_engine_args
from furiosa_llm.artifact.hub import find_model
from furiosa_llm.config import EngineArgs
from furiosa_llm.errors import ConfigError, ModelLoadError
from tests.hub_cache import add_to_cache
from tests.unit.artifact.artifact_factories import write_artifact

SNAPSHOT = "huggingface_hub.snapshot_download"
COMMITS = {"main": "a" * 40, "v2": "b" * 40}


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty cache, and no hub."""
    folder = tmp_path / "hub"
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(folder))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    return folder


def write_model(folder: Path) -> Path:
    folder.mkdir()
    (folder / "config.json").write_text("{}")
    (folder / "model.safetensors").write_bytes(b"weights")
    return folder


def test_a_folder_is_taken_as_it_is(tmp_path: Path) -> None:
    assert find_model(str(tmp_path)) == tmp_path


def test_a_hub_id_is_the_folder_of_its_snapshot(hub: Path, tmp_path: Path) -> None:
    source = write_model(tmp_path / "source")
    snapshots = {
        name: add_to_cache(hub, "someone/tiny", source, revision=name, commit=commit)
        for name, commit in COMMITS.items()
    }

    assert find_model("someone/tiny") == snapshots["main"]
    assert find_model("someone/tiny", revision="v2") == snapshots["v2"]
    assert find_model("someone/tiny", revision=COMMITS["v2"]) == snapshots["v2"]


def test_the_options_name_the_folder_and_those_of_an_artifact_on_the_hub_are_taken(
    hub: Path, tmp_path: Path
) -> None:
    source = tmp_path / "source"
    source.mkdir()
    write_artifact(source, tensor_parallel_size=2)
    snapshot = add_to_cache(hub, "someone/tiny", source, revision="v2", commit=COMMITS["v2"])

    resolved = resolve_engine_args(EngineArgs(model="someone/tiny", revision="v2"))

    assert (resolved.model, resolved.revision) == (str(snapshot), None)
    assert resolved.tensor_parallel_size == 2
    assert resolve_engine_args(resolved) == resolved


def test_a_revision_of_a_folder_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"--revision v2 is for a hub id, but .* is a path"):
        find_model(str(tmp_path), revision="v2")


@pytest.mark.parametrize(
    ("model", "revision", "message"),
    [
        (
            "someone/tiny",
            None,
            r"tiny: no such model: .* \(.*outgoing traffic.*\); check its name$",
        ),
        ("someone/tiny", "v3", r"no such model: .*; check its name and --revision v3$"),
        (
            "./some/where/else",
            None,
            r"else: no such model: .* that can be reached; check its name$",
        ),
    ],
)
@pytest.mark.usefixtures("hub")
def test_a_model_that_is_nowhere_is_one_line(
    model: str, revision: str | None, message: str
) -> None:
    with pytest.raises(ModelLoadError, match=message) as error:
        find_model(model, revision=revision)
    assert "\n" not in str(error.value)


def test_pickles_are_asked_for_only_where_they_are_allowed_and_needed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[bool] = []

    def snapshot(model: str, *, allow_patterns: list[str], **_: object) -> str:
        assert model == "someone/tiny"
        assert {"*.json", "LICENSE*"} <= set(allow_patterns)
        asked.append("*.bin" in allow_patterns)
        return str(tmp_path)

    monkeypatch.setattr(SNAPSHOT, snapshot)

    find_model("someone/tiny")
    find_model("someone/tiny", allow_pickle=True)
    (tmp_path / "model.safetensors").touch()
    find_model("someone/tiny", allow_pickle=True)

    assert asked == [False, False, True, False]


def test_a_hub_is_asked_through_a_proxy_that_alone_knows_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked: list[str] = []

    class Proxy(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            asked.append(self.path)
            self.send_error(404, "Not here")

        def log_message(self, *_: object) -> None:
            pass

    server = HTTPServer(("127.0.0.1", 0), Proxy)
    Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setenv("HTTP_PROXY", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://hub.invalid")
    close_session()  # it knows the proxies of its start
    try:
        with pytest.raises(ModelLoadError, match="no such model"):
            find_model("someone/tiny")
    finally:
        server.shutdown()
        server.server_close()
        close_session()

    assert asked
    assert asked[0].startswith("http://hub.invalid/api/models/someone/tiny")


def test_a_download_that_fails_is_not_told_as_a_model_that_is_not_there(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    def snapshot(*_: object, **__: object) -> str:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(SNAPSHOT, snapshot)

    with pytest.raises(
        ModelLoadError, match=r"^a/b: cannot be downloaded: .*No space left"
    ) as error:
        find_model("a/b")
    assert "no such model" not in str(error.value)


def test_a_name_that_no_file_can_have_is_no_path() -> None:
    with pytest.raises(ModelLoadError, match="no such model"):
        find_model("x" * 300)
