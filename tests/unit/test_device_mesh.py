from __future__ import annotations

import itertools
import logging

import pytest
from hypothesis import given
from hypothesis import strategies as st

from furiosa_llm.device_mesh import DeviceMesh, build_mesh, fused_groups
from furiosa_llm.devices import Device, format_devices, parse_devices
from furiosa_llm.errors import ConfigError

FOUR_NPUS = "npu:0,npu:1,npu:2,npu:3"
PIPELINE_IN_ONE_NPU = "pipeline parallelism across PEs of one device has no benefit"


def mesh_of(
    text: str, tp: int | None = None, pp: int | None = None, dp: int | None = None
) -> DeviceMesh:
    return build_mesh(
        parse_devices(text),
        tensor_parallel_size=tp,
        pipeline_parallel_size=pp,
        data_parallel_size=dp,
    )


def layout(mesh: DeviceMesh) -> list[list[str]]:
    return [[format_devices(ranks) for ranks in stages] for stages in mesh.replicas]


def refusal(text: str, tp: int | None = None, pp: int | None = None, dp: int | None = None) -> str:
    with pytest.raises(ConfigError) as caught:
        mesh_of(text, tp, pp, dp)
    return str(caught.value)


@pytest.mark.parametrize(
    ("text", "tp", "pp", "expected"),
    [
        ("npu:0", 4, 1, [["npu:0:0-3"], ["npu:0:4-7"]]),
        ("npu:0,npu:1", 8, None, [["npu:0"], ["npu:1"]]),
        ("npu:0:0-3", 4, None, [["npu:0:0-3"]]),
        (FOUR_NPUS, 8, 4, [["npu:0", "npu:1", "npu:2", "npu:3"]]),
        (
            FOUR_NPUS,
            4,
            2,
            [
                ["npu:0:0-3", "npu:2:0-3"],
                ["npu:0:4-7", "npu:2:4-7"],
                ["npu:1:0-3", "npu:3:0-3"],
                ["npu:1:4-7", "npu:3:4-7"],
            ],
        ),
    ],
)
def test_as_many_replicas_as_fit_lie_on_npus(
    text: str, tp: int, pp: int | None, expected: list[list[str]]
) -> None:
    mesh = mesh_of(text, tp, pp)

    assert layout(mesh) == expected
    assert mesh.dropped == ()
    assert mesh.data_parallel_size == len(expected)
    assert mesh.pipeline_parallel_size == (pp or 1)
    assert mesh.tensor_parallel_size == tp


def test_the_stages_of_a_replica_on_one_npu_are_refused() -> None:
    assert refusal("npu:0", 4, 2) == (
        "pipeline parallelism across PEs of one device has no benefit: each replica needs 2 "
        "different NPUs for its stages, which the 8 PEs given (npu:0) do not offer to 1 replica "
        "at once; give more NPUs, or lower one of tensor_parallel_size 4, pipeline_parallel_size 2"
    )


def test_a_plain_checkpoint_takes_a_whole_npu_for_each_replica_and_one_device_elsewhere() -> None:
    assert layout(mesh_of("npu:0,npu:1")) == [["npu:0"], ["npu:1"]]
    assert layout(mesh_of("cuda:0,cuda:1")) == [["cuda:0"], ["cuda:1"]]
    assert layout(mesh_of("cpu:0,cpu:1")) == [["cpu:0"], ["cpu:1"]]
    assert layout(mesh_of("cpu")) == [["cpu"]]


def test_more_than_eight_pes_of_a_stage_join_whole_npus() -> None:
    mesh = mesh_of(FOUR_NPUS + ",npu:4:0-3", 16)

    assert layout(mesh) == [["npu:0,npu:1"], ["npu:2,npu:3"]]
    assert format_devices(mesh.dropped) == "npu:4:0-3"
    assert layout(mesh_of(FOUR_NPUS, 16, 2)) == [["npu:0,npu:1", "npu:2,npu:3"]]


def test_an_npu_that_is_not_whole_is_left_out_of_a_stage_of_whole_npus() -> None:
    mesh = mesh_of("npu:0,npu:1:0-3,npu:2", 16)

    assert layout(mesh) == [["npu:0,npu:2"]]
    assert format_devices(mesh.dropped) == "npu:1:0-3"


def test_devices_left_over_are_dropped_from_the_end_and_logged(
    caplog: pytest.LogCaptureFixture,
) -> None:
    caplog.set_level(logging.INFO, logger="furiosa_llm")

    mesh = mesh_of("npu:0,npu:1:0-3", 8)
    assert format_devices(mesh.dropped) == "npu:1:0-3"
    mesh = mesh_of("npu:0,npu:1", 4, dp=2)
    assert layout(mesh) == [["npu:0:0-3"], ["npu:0:4-7"]]
    assert format_devices(mesh.dropped) == "npu:1"
    mesh = mesh_of("cuda:0,cuda:1,cuda:2", 2)
    assert format_devices(mesh.dropped) == "cuda:2"

    assert [record.getMessage() for record in caplog.records] == [
        "4 of 12 PEs are not used: npu:1:0-3",
        "8 of 16 PEs are not used: npu:1",
        "1 of 3 GPUs are not used: cuda:2",
    ]


def test_nothing_is_logged_when_every_device_is_used(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO, logger="furiosa_llm")

    mesh_of("npu:0", 4)

    assert caplog.records == []


def test_pes_outside_an_aligned_group_are_not_used() -> None:
    mesh = mesh_of("npu:0:2-3,npu:0:4-5,npu:1:4-7", 4)

    assert layout(mesh) == [["npu:1:4-7"]]
    assert format_devices(mesh.dropped) == "npu:0:2-3,npu:0:4-5"


def test_a_group_never_spans_two_npus() -> None:
    assert "0 of them can be used" in refusal("npu:0:6-7,npu:1:0-1", 4)


def test_too_few_devices_are_refused_with_what_was_given() -> None:
    assert refusal("npu:0:0-3") == (
        "Not enough devices to run the model. 8 PEs are required. Give more than the 4 PEs given "
        "(npu:0:0-3), or lower one of tensor_parallel_size 8, pipeline_parallel_size 1"
    )
    assert refusal("npu:0,npu:1", 8, 1, 4).startswith(
        "Not enough devices to run the model. 32 PEs are required. Give more than the 16 PEs "
    )
    assert refusal("cuda:0", 2).startswith(
        "Not enough devices to run the model. 2 GPUs are required. Give more than the 1 GPU "
    )
    assert refusal("npu:0:2-3,npu:0:4-5", 4).endswith(
        "; 0 of them can be used, because PEs work together in aligned groups of 4 within one NPU"
    )


def test_a_replica_count_that_was_not_given_is_one_that_works() -> None:
    # 6 PEs would make 3 pairs of stages, but two of the pairs would lie on NPU 0 alone.
    mesh = mesh_of("npu:0:0-3,npu:1:0-1", 2, 2)

    assert layout(mesh) == [["npu:0:0-1", "npu:1:0-1"]]
    assert format_devices(mesh.dropped) == "npu:0:2-3"
    assert PIPELINE_IN_ONE_NPU in refusal("npu:0,npu:1:0-1", 2, 2, 2)


def test_few_replicas_with_stages_leave_out_what_they_cannot_use() -> None:
    mesh = mesh_of(FOUR_NPUS, 4, 2, 1)

    assert layout(mesh) == [["npu:0:0-3", "npu:1:0-3"]]
    assert format_devices(mesh.dropped) == "npu:0:4-7,npu:1:4-7,npu:2,npu:3"


def test_gpus_and_cores_need_no_alignment() -> None:
    assert layout(mesh_of("cuda:1,cuda:2,cuda:5", 3)) == [["cuda:1,cuda:2,cuda:5"]]
    assert layout(mesh_of("cpu:1,cpu:2,cpu:4,cpu:7", 1, 2)) == [
        ["cpu:1", "cpu:4"],
        ["cpu:2", "cpu:7"],
    ]


def test_plain_cpu_has_room_for_everything() -> None:
    mesh = mesh_of("cpu", 3, 2, 5)

    cpu = Device(kind="cpu")
    assert mesh.replicas == (((cpu,) * 3,) * 2,) * 5
    assert mesh.dropped == ()
    assert mesh_of("cpu", 3, 2).data_parallel_size == 1


@pytest.mark.parametrize("tp", [3, 5, 6, 7, 9, 12, 20])
def test_npus_fuse_only_certain_numbers_of_pes(tp: int) -> None:
    message = f"tensor_parallel_size must be 1, 2, 4 or a multiple of 8 on NPUs, got {tp}"

    assert refusal(FOUR_NPUS, tp) == message
    assert mesh_of("cpu", tp).tensor_parallel_size == tp


@pytest.mark.parametrize("text", ["npu:0", "cpu", "cpu:0", "cuda:0"])
@pytest.mark.parametrize("size", [0, -8])
def test_a_size_below_one_is_refused(text: str, size: int) -> None:
    assert refusal(text, size) == f"tensor_parallel_size must be at least 1, got {size}"
    assert refusal(text, pp=size) == f"pipeline_parallel_size must be at least 1, got {size}"
    assert refusal(text, dp=size) == f"data_parallel_size must be at least 1, got {size}"


@pytest.mark.parametrize(
    ("text", "tp", "num_processes", "num_ranks"),
    [
        ("npu:0", 1, 1, 1),
        ("npu:0", 4, 1, 4),
        ("npu:0", 8, 1, 8),
        (FOUR_NPUS, 16, 2, 8),
        (FOUR_NPUS, 32, 4, 8),
        ("cpu", 3, 3, 1),
        ("cpu:0,cpu:1", 2, 2, 1),
        ("cuda:0,cuda:1", 2, 2, 1),
    ],
)
def test_the_pes_of_one_npu_fuse_into_one_process(
    text: str, tp: int, num_processes: int, num_ranks: int
) -> None:
    mesh = mesh_of(text, tp)
    groups = fused_groups(mesh.replicas[0][0])

    assert mesh.num_processes_per_stage == num_processes
    assert mesh.num_ranks_per_process == num_ranks
    assert [len(group) for group in groups] == [num_ranks] * num_processes
    assert sum(groups, ()) == mesh.replicas[0][0]


def test_a_mesh_describes_itself_in_a_few_lines() -> None:
    assert str(mesh_of("npu:0,npu:1,npu:2", 4, 2, 2)).splitlines() == [
        "shape: 2 replicas x 2 stages x 4 PEs",
        "replica 0: npu:0:0-3 | npu:1:0-3",
        "replica 1: npu:0:4-7 | npu:1:4-7",
        "not used: npu:2",
    ]
    assert str(mesh_of("cpu", 1, 1, 2)).splitlines() == [
        "shape: 2 replicas x 1 stage x 1 rank",
        "all on: cpu",
    ]


npu_devices = st.sets(
    st.builds(Device, kind=st.just("npu"), index=st.integers(0, 4), pe=st.integers(0, 7)),
    min_size=1,
) | st.sets(st.integers(0, 6), min_size=1).map(
    lambda npus: set(parse_devices(",".join(f"npu:{npu}" for npu in npus)))
)
other_devices = st.sampled_from(["cpu", "cuda"]).flatmap(
    lambda kind: st.sets(
        st.builds(Device, kind=st.just(kind), index=st.integers(0, 20)), min_size=1
    )
)


@given(
    devices=npu_devices | other_devices,
    tp=st.sampled_from([None, 1, 2, 4, 8, 16, 24]),
    pp=st.none() | st.integers(1, 4),
    dp=st.none() | st.integers(1, 6),
)
def test_a_mesh_uses_each_device_once_and_its_groups_are_whole(
    devices: set[Device], tp: int | None, pp: int | None, dp: int | None
) -> None:
    given_devices = parse_devices(format_devices(devices))
    try:
        mesh = mesh_of(format_devices(devices), tp, pp, dp)
    except ConfigError:
        return
    used = [device for stages in mesh.replicas for ranks in stages for device in ranks]
    sizes = mesh.data_parallel_size, mesh.pipeline_parallel_size, mesh.tensor_parallel_size

    assert sorted(map(str, [*used, *mesh.dropped])) == sorted(map(str, given_devices))
    assert sizes[1] == (pp or 1)
    assert dp in (None, sizes[0])
    assert len(used) == sizes[0] * sizes[1] * sizes[2]
    if mesh.kind == "npu":
        for stages in mesh.replicas:
            assert_stages_lie_on_later_and_later_npus(stages)


def assert_stages_lie_on_later_and_later_npus(stages: tuple[tuple[Device, ...], ...]) -> None:
    npus = [[device.index or 0 for device in ranks] for ranks in stages]
    for earlier, later in itertools.pairwise(npus):
        assert max(earlier) < min(later)
    for ranks in stages:
        for group in fused_groups(ranks):
            size = min(8, len(ranks))
            first = group[0].pe or 0
            assert first % size == 0
            assert {device.index for device in group} == {group[0].index}
            assert [device.pe for device in group] == list(range(first, first + size))


@given(
    counts=st.lists(st.integers(0, 4), min_size=1, max_size=5),
    pp=st.integers(1, 4),
    dp=st.integers(1, 8),
)
def test_replicas_find_room_whenever_taking_from_the_fullest_npus_would(
    counts: list[int], pp: int, dp: int
) -> None:
    text = ",".join(
        f"npu:{npu}:{2 * pair}-{2 * pair + 1}"
        for npu, count in enumerate(counts)
        for pair in range(count)
    )
    left = list(counts)
    has_room = len(left) >= pp
    for _ in range(dp):
        left.sort(reverse=True)
        has_room = has_room and left[pp - 1] > 0
        left[:pp] = [count - 1 for count in left[:pp]]
    try:
        mesh = mesh_of(text, 2, pp, dp) if text else None
    except ConfigError:
        mesh = None

    assert (mesh is not None) == has_room
