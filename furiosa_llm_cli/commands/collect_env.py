"""`furiosa-llm collect-env`."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import click

from furiosa_llm.device_mesh import DeviceMesh, build_mesh
from furiosa_llm.devices import expand_devices, parse_devices
from furiosa_llm.library_imports.loading import loading_libraries
from furiosa_llm.memory_limits import free_memory_bytes
from furiosa_llm_cli.formats import gibibytes, one_line
from furiosa_llm_cli.machine import Gpu, Machine, gpus, machine, usable_cores, variables, versions
from furiosa_llm_cli.summary import Fact, plain_facts

_MAX_SHOWN = 200
_EMULATED = "NPUs are emulated on this machine's CPU"

_EXAMPLES = """\b
Examples:
  furiosa-llm collect-env
  furiosa-llm collect-env --devices npu:0,npu:1 --tensor-parallel-size 4
  furiosa-llm collect-env --json > environment.json
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Report:
    """All that is shown.

    Attributes:
        machine: Processor, cores and memory.
        free_memory_bytes: What this process may still take.
        gpus: Those that torch can use.
        versions: Of the program and its libraries.
        variables: Environment variables; None where one is not set.
        devices: The devices of the mesh, as the user wrote them.
        mesh: What they become.
    """

    machine: Machine
    free_memory_bytes: int
    gpus: Sequence[Gpu]
    versions: Mapping[str, str | None]
    variables: Mapping[str, str | None]
    devices: str
    mesh: DeviceMesh


@click.command(epilog=_EXAMPLES)
@click.option(
    "--devices",
    metavar="DEVICES",
    help="Devices of the mesh, as npu:0, npu:0:0-3, cpu or cuda:0,cuda:1.  "
    "[default: all GPUs, else cpu]",
)
@click.option(
    "--tensor-parallel-size",
    type=int,
    metavar="N",
    help="Devices that share each layer.  [default: 8 on NPUs, else 1]",
)
@click.option(
    "--pipeline-parallel-size",
    type=int,
    metavar="N",
    help="Stages of a replica.  [default: 1]",
)
@click.option(
    "--data-parallel-size",
    type=int,
    metavar="N",
    help="Replicas.  [default: as many as there is room for, on plain cpu 1]",
)
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def collect_env(
    *,
    devices: str | None,
    tensor_parallel_size: int | None,
    pipeline_parallel_size: int | None,
    data_parallel_size: int | None,
    as_json: bool,
) -> None:
    """Show this machine, and how devices make a mesh.

    A bug report is best begun with this. It runs no model and looks at nothing outside the machine.
    """
    wanted = None if devices is None else parse_devices(devices)
    with loading_libraries():
        found_gpus = gpus()
    shown = devices if devices is not None else "cuda" if found_gpus else "cpu"
    mesh = build_mesh(
        expand_devices(
            wanted or parse_devices(shown), num_gpus=len(found_gpus), cores=usable_cores()
        ),
        tensor_parallel_size=tensor_parallel_size,
        pipeline_parallel_size=pipeline_parallel_size,
        data_parallel_size=data_parallel_size,
    )
    report = _Report(
        machine=machine(),
        free_memory_bytes=free_memory_bytes(),
        gpus=found_gpus,
        versions=versions(),
        variables=variables(),
        devices=shown,
        mesh=mesh,
    )
    click.echo(json.dumps(_content(report), indent=2) if as_json else _text(report))


def _text(report: _Report) -> str:
    sections = {
        "Machine": _machine_facts(report),
        "Versions": [(name, value or "not installed") for name, value in report.versions.items()],
        "Environment": [
            (name, "not set" if value is None else one_line(value, _MAX_SHOWN))
            for name, value in report.variables.items()
        ],
        "Mesh": _mesh_facts(report),
    }
    width = max(len(name) for facts in sections.values() for name, _ in facts)
    blocks = []
    for heading, facts in sections.items():
        lines = plain_facts([(f"  {name:<{width}}", value) for name, value in facts])
        blocks.append(f"{click.style(heading, bold=True)}\n{lines}")
    return "\n\n".join(blocks)


def _machine_facts(report: _Report) -> list[Fact]:
    found = report.machine
    facts = [
        ("system", found.system),
        ("processor", found.cpu),
        ("features", _features(found.cpu_features)),
        ("cores", f"{found.cores}, of them {found.usable_cores} for this process"),
        (
            "memory",
            f"{gibibytes(found.memory_bytes)}, of it {gibibytes(report.free_memory_bytes)} free",
        ),
    ]
    if not report.gpus:
        facts.append(("GPUs", "none"))
    for index, gpu in enumerate(report.gpus):
        facts.append((f"cuda:{index}", f"{gpu.name}, {gibibytes(gpu.memory_bytes)}"))
    return facts


def _mesh_facts(report: _Report) -> list[Fact]:
    mesh = report.mesh
    facts = [("devices", one_line(report.devices, _MAX_SHOWN))]
    if mesh.kind == "npu":
        facts.append(("note", _EMULATED))
    return [*facts, *mesh.facts(), ("processes", _processes(mesh))]


def _processes(mesh: DeviceMesh) -> str:
    number = mesh.num_processes_per_stage
    text = f"{number} for each stage"
    if mesh.kind != "npu":
        return text
    num_threads = mesh.num_ranks_per_process
    return f"{text}, {'1 thread' if num_threads == 1 else f'{num_threads} threads'} in each"


def _features(features: Mapping[str, bool] | None) -> str:
    if features is None:
        return "unknown"
    present = [name for name, is_present in features.items() if is_present]
    absent = [name for name, is_present in features.items() if not is_present]
    text = " ".join(present) or "none of those that matter"
    return f"{text} (not {' '.join(absent)})" if absent else text


def _content(report: _Report) -> dict[str, object]:
    mesh = report.mesh
    return {
        "machine": {
            **dataclasses.asdict(report.machine),
            "free_memory_bytes": report.free_memory_bytes,
        },
        "gpus": [dataclasses.asdict(gpu) for gpu in report.gpus],
        "versions": report.versions,
        "environment": report.variables,
        "mesh": {
            "devices": report.devices,
            "is_emulated": mesh.kind == "npu",
            "data_parallel_size": mesh.data_parallel_size,
            "pipeline_parallel_size": mesh.pipeline_parallel_size,
            "tensor_parallel_size": mesh.tensor_parallel_size,
            "num_processes_per_stage": mesh.num_processes_per_stage,
            "replicas": [
                [[str(device) for device in ranks] for ranks in stages] for stages in mesh.replicas
            ],
            "dropped": [str(device) for device in mesh.dropped],
        },
    }
