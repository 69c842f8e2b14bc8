"""Shows what a file or a folder of this program is."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from furiosa_llm.device_mesh import counted
from furiosa_llm_cli.formats import LATENCY_NAMES, count, data_size, one_line, share
from furiosa_llm_cli.summary import Fact, example_error, plain_facts

if TYPE_CHECKING:
    from furiosa_llm.artifact.contents import Artifact
    from furiosa_llm.dataset.describe_run import RunDescription, UnfinishedRun
    from furiosa_llm.modeling.model_outline import ModelOutline

_MAX_SHOWN = 100
_HEADINGS = {"p50": "P50", "p90": "P90", "p99": "P99", "max": "max"}
_MILLISECONDS = 1000


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What is told of something, for people and for programs.

    Attributes:
        blocks: Facts under each heading.
        content: All of it, as JSON can hold it.
    """

    blocks: Mapping[str, Sequence[Fact]]
    content: Mapping[str, object]

    def text(self) -> str:
        """Returns the facts as lines."""
        width = max(len(name) for facts in self.blocks.values() for name, _ in facts)
        return "\n\n".join(
            f"{click.style(heading, bold=True)}\n"
            + plain_facts([(f"  {name:<{width}}", value) for name, value in facts])
            for heading, facts in self.blocks.items()
            if facts
        )


def run_report(path: Path, run: RunDescription) -> Report:
    """Tells of an output."""
    return Report(
        blocks={
            f"Output {path}": _row_facts(run),
            "Milliseconds": _latency_facts(run),
            "The run": _manifest_facts(run.manifest),
        },
        content={"kind": "output", "path": str(path), **dataclasses.asdict(run)},
    )


def unfinished_report(path: Path, run: UnfinishedRun) -> Report:
    """Tells of a run that has not ended, or ended early."""
    status = run.status
    done, total = status.get("rows_done"), status.get("rows_total")
    facts = [
        ("state", str(status.get("state", "not told"))),
        ("at work", "a process is" if run.is_running else "no one is"),
        ("saved rows", f"{count(run.num_saved)} in {run.parts_folder}"),
    ]
    if done is not None:
        facts.append(("done rows", count(done) + ("" if total is None else f" of {count(total)}")))
    for name in ("reason", "started_at", "updated_at", "pid"):
        if name in status:
            facts.append((name.replace("_at", ""), one_line(str(status[name]), _MAX_SHOWN)))
    if not run.is_running:
        facts.append(("to go on", "the same `furiosa-llm run` with --resume"))
    return Report(
        blocks={f"Unfinished output {path}": facts},
        content={"kind": "unfinished", "path": str(path), **dataclasses.asdict(run)},
    )


def artifact_report(path: Path, artifact: Artifact) -> Report:
    """Tells of an artifact."""
    values = dataclasses.asdict(artifact)
    size = sum(file.num_bytes for file in artifact.files)
    facts = [
        (name, _value(value))
        for name, value in values.items()
        if name not in ("files", "runtime") and value is not None
    ]
    facts.append(("files", f"{len(artifact.files)}, {data_size(size)}"))
    runtime = dataclasses.asdict(artifact.runtime)
    options = [(name, _value(value)) for name, value in runtime.items() if value not in (None, ())]
    return Report(
        blocks={f"Artifact {path}": facts, "Options that it is loaded with": options},
        content={"kind": "artifact", "path": str(path), **values},
    )


def checkpoint_report(path: Path, outline: ModelOutline, weights_bytes: int | None) -> Report:
    """Tells of a checkpoint."""
    facts = [
        ("architecture", outline.architecture),
        ("context", f"{count(outline.max_model_len)} tokens"),
        ("layers", "not told" if outline.num_layers is None else count(outline.num_layers)),
        ("quantised", "yes" if outline.is_quantised else "no"),
        (
            "weights",
            "no .safetensors here" if weights_bytes is None else data_size(weights_bytes),
        ),
    ]
    content = {"kind": "checkpoint", "path": str(path), "weights_bytes": weights_bytes}
    return Report(
        blocks={f"Checkpoint {path}": facts}, content={**content, **dataclasses.asdict(outline)}
    )


def _row_facts(run: RunDescription) -> list[Fact]:
    num_failed = sum(run.error_counts.values())
    facts = [("rows", count(run.num_rows))]
    facts += [
        (f"ended by {reason}", _of(number, run.num_rows))
        for reason, number in sorted(run.finish_reasons.items())
        if reason != "error"
    ]
    if num_failed:
        facts.append(("failed", _of(num_failed, run.num_rows)))
    for code, number in sorted(run.error_counts.items()):
        facts.append((code, f"{count(number)}; {example_error(*run.first_errors[code])}"))
    totals = run.totals
    cached = share(totals["num_cached_tokens"], totals["num_prompt_tokens"])
    facts += [
        (
            "tokens in",
            f"{count(totals['num_prompt_tokens'])}, of them "
            f"{count(totals['num_cached_tokens'])} ({cached}) from the prefix cache",
        ),
        ("tokens out", count(totals["num_output_tokens"])),
        (
            "KV cache",
            f"{counted(run.peak_blocks, 'block')} of a row at most, "
            f"{count(totals['num_preemptions'])} preemptions",
        ),
    ]
    if len(run.replicas) > 1:
        shares = ", ".join(f"{name}: {count(run.replicas[name])}" for name in sorted(run.replicas))
        facts.append(("replicas", f"rows of each: {shares}"))
    return facts


def _latency_facts(run: RunDescription) -> list[Fact]:
    if not run.latencies:
        return []
    facts = [("", "".join(f"{heading:>12}" for heading in _HEADINGS.values()))]
    for name, values in run.latencies.items():
        cells = "".join(f"{_MILLISECONDS * values[share]:>12,.2f}" for share in _HEADINGS)
        facts.append((LATENCY_NAMES[name], cells))
    return facts


def _manifest_facts(manifest: Mapping[str, Any]) -> list[Fact]:
    """Tells what the run was, and what of its options is no default."""
    if not manifest:
        return [("manifest", "none: another program wrote the file, or changed it")]
    options = manifest.get("options", {})
    named = {
        "model": manifest.get("model"),
        "weights": manifest.get("model_hash"),
        "engine": options.get("placement"),
        "computed on": manifest.get("identity", {}).get("computed_on"),
        "computed in": manifest.get("identity", {}).get("computed_in"),
        "quantization": options.get("quantization"),
        "seed": manifest.get("seed"),
        "shard": _shard(manifest.get("shard", {})),
        "started": manifest.get("started_at"),
        "ended": manifest.get("ended_at"),
        "host": manifest.get("host"),
    }
    facts = [(name, _value(value)) for name, value in named.items() if value is not None]
    facts += [("input", _value(entry.get("path"))) for entry in manifest.get("inputs", ())[:3]]
    versions = manifest.get("versions", {}).items()
    facts.append(("versions", ", ".join(f"{name} {value}" for name, value in versions if value)))
    return facts


def _shard(shard: Mapping[str, int]) -> str | None:
    return f"{shard['number']}/{shard['count']}" if shard.get("count", 1) > 1 else None


def _value(value: object) -> str:
    return one_line(str(value), _MAX_SHOWN)


def _of(part: int, whole: int) -> str:
    return f"{count(part)} ({share(part, whole)})"
