from __future__ import annotations

import logging
from typing import Any

import pytest

from furiosa_llm.config import EngineArgs
from furiosa_llm.errors import ConfigError
from furiosa_llm.replicas.placement import Placement, ProcessPlace, place

CORES = tuple(range(8))


def placed(*, cores: tuple[int, ...] = CORES, num_gpus: int = 0, **options: Any) -> Placement:
    return place(EngineArgs(model="m", **options), cores=cores, num_gpus=num_gpus)


def processes(placement: Placement) -> list[ProcessPlace]:
    return [process for stages in placement.replicas for ranks in stages for process in ranks]


def test_without_options_one_process_has_the_whole_machine() -> None:
    placement = placed()

    assert placement.is_one_process
    assert processes(placement) == [ProcessPlace(device="cpu")]
    assert str(placement) == "1 replica, on cpu"


def test_replicas_divide_the_cores_evenly() -> None:
    placement = placed(data_parallel_size=3)

    assert [(process.cores, process.num_threads) for process in processes(placement)] == [
        ((0, 1), 2),
        ((2, 3), 2),
        ((4, 5), 2),
    ]
    assert str(placement) == "3 replicas, 2 threads each, on cpu"


def test_stages_and_ranks_divide_them_too() -> None:
    placement = placed(pipeline_parallel_size=2, tensor_parallel_size=2, cores=(0, 1, 2, 3))

    assert [process.cores for process in processes(placement)] == [(0,), (1,), (2,), (3,)]
    assert (placement.num_replicas, placement.num_stages, placement.num_ranks) == (1, 2, 2)
    assert str(placement) == "1 replica, each 2 stages of 2 processes, 1 thread each, on cpu"


def test_more_replicas_than_cores_share_them_in_turn() -> None:
    placement = placed(data_parallel_size=3, cores=(4, 7))

    assert [process.cores for process in processes(placement)] == [(4,), (7,), (4,)]


def test_the_number_of_threads_given_decides() -> None:
    placement = placed(data_parallel_size=2, threads_per_replica=1)

    assert [(process.cores, process.num_threads) for process in processes(placement)] == [
        ((0, 1, 2, 3), 1),
        ((4, 5, 6, 7), 1),
    ]


def test_a_core_by_number_is_one_pinned_process() -> None:
    placement = placed(devices="cpu:5")

    assert processes(placement) == [ProcessPlace(device="cpu", cores=(5,), num_threads=1)]
    assert not placement.is_one_process  # the caller's own process is not pinned


@pytest.mark.parametrize("devices", ["cpu", "npu:0"])
def test_a_machine_has_no_room_for_more_threads_than_cores(devices: str) -> None:
    with pytest.raises(ConfigError, match=r"threads_per_replica \(9\) must be at most 8, the"):
        placed(devices=devices, threads_per_replica=9)
    assert processes(placed(devices=devices, threads_per_replica=8))[0].num_threads == 8


def test_a_core_has_no_room_for_two_threads() -> None:
    with pytest.raises(ConfigError, match=r"threads_per_replica \(2\) must be 1 on cpu:5"):
        placed(devices="cpu:5", threads_per_replica=2)


@pytest.mark.parametrize(
    ("devices", "tp", "num_processes", "num_threads"),
    [
        ("npu:0", None, 1, 8),  # eight PEs are one process
        ("npu:0:0-3", 4, 1, 4),
        ("npu:0", 4, 2, 4),
        ("npu:0,npu:1", 16, 2, 4),  # a group over two NPUs
        ("npu:0:0", 1, 1, 1),
    ],
)
def test_fused_elements_of_an_npu_are_threads_of_a_process(
    devices: str, tp: int | None, num_processes: int, num_threads: int
) -> None:
    found = processes(placed(devices=devices, tensor_parallel_size=tp))

    assert [process.num_threads for process in found] == [num_threads] * num_processes


def test_that_npus_are_emulated_is_said_once(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING):
        placed(devices="npu:0", tensor_parallel_size=2)

    assert [record.message for record in caplog.records] == [
        "NPUs are emulated on this machine's CPU: npu:0"
    ]


def test_gpus_are_taken_when_there_are_any() -> None:
    placement = placed(num_gpus=2)

    assert processes(placement) == [
        ProcessPlace(device="cuda:0"),
        ProcessPlace(device="cuda:1"),
    ]
    assert placement.is_on_gpus
    assert str(placement) == "2 replicas, on cuda:0 cuda:1"


def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="cuda:1"):
        placed(devices="cuda:1", num_gpus=1)


def test_a_whole_machine_holds_the_replicas_that_the_rule_says() -> None:
    args = EngineArgs(model="m")

    chosen = place(args, cores=CORES, num_gpus=0, num_cpu_replicas=4)
    staged = place(
        EngineArgs(model="m", pipeline_parallel_size=2), cores=CORES, num_gpus=0, num_cpu_replicas=8
    )
    given = place(
        EngineArgs(model="m", data_parallel_size=3), cores=CORES, num_gpus=0, num_cpu_replicas=8
    )

    assert [each.num_replicas for each in (chosen, staged, given)] == [4, 4, 3]
