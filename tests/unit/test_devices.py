from __future__ import annotations

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from furiosa_llm.devices import Device, expand_devices, format_devices, parse_devices
from furiosa_llm.errors import ConfigError

single_devices = st.one_of(
    st.builds(Device, kind=st.just("npu"), index=st.integers(0, 9999), pe=st.integers(0, 7)),
    st.builds(
        Device, kind=st.sampled_from(["cpu", "cuda"]), index=st.none() | st.integers(0, 9999)
    ),
)
device_sets = st.sampled_from(["npu", "cpu", "cuda"]).flatmap(
    lambda kind: st.sets(
        st.builds(
            Device,
            kind=st.just(kind),
            index=st.integers(0, 3),
            pe=st.integers(0, 7) if kind == "npu" else st.none(),
        ),
        min_size=1,
    )
)


def names(text: str) -> list[str]:
    return [str(device) for device in parse_devices(text)]


def pes(npu: int, *numbers: int) -> list[str]:
    return [f"npu:{npu}:{number}" for number in numbers]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("npu:0", pes(0, *range(8))),
        ("npu:12:*", pes(12, *range(8))),
        ("npu:0:3", pes(0, 3)),
        ("npu:0:3-3", pes(0, 3)),
        *((f"npu:1:{low}-{low + 1}", pes(1, low, low + 1)) for low in (0, 2, 4, 6)),
        ("npu:1:0-3", pes(1, 0, 1, 2, 3)),
        ("npu:1:4-7", pes(1, 4, 5, 6, 7)),
        ("npu:1:0-7", pes(1, *range(8))),
        ("cpu", ["cpu"]),
        ("cpu:1", ["cpu:1"]),
        ("cuda", ["cuda"]),
        ("cuda:0", ["cuda:0"]),
        (" npu:0:1 ,\tnpu:0:0\n", pes(0, 0, 1)),
        ("npu:10:0,npu:2:1,npu:2:0", [*pes(2, 0, 1), *pes(10, 0)]),
        ("cuda:10,cuda:9", ["cuda:9", "cuda:10"]),
    ],
)
def test_a_list_names_single_devices_in_order(text: str, expected: list[str]) -> None:
    assert names(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "device '': the device string is empty; write npu:0, npu:0:0-3, cpu or cuda:0"),
        (
            "npu:0,,npu:1",
            "device '': the device string is empty; write npu:0, npu:0:0-3, cpu or cuda:0",
        ),
        (
            "tpu:0",
            "device 'tpu:0': the device string has an unknown kind 'tpu'; "
            "write npu:0, npu:0:0-3, cpu or cuda:0",
        ),
        (
            "npu:0:1:2",
            "device 'npu:0:1:2': the device string has too many colons; write npu:0:3 or npu:0:0-3",
        ),
        ("cpu:0:1", "device 'cpu:0:1': the device string has too many colons; write cpu:0"),
        ("npu", "device 'npu': the NPU index is missing; write npu:0"),
        (
            "npu:x",
            "device 'npu:x': the NPU index 'x' is not a number; write plain digits, as npu:0",
        ),
        (
            "cuda:",
            "device 'cuda:': the GPU index '' is not a number; write plain digits, as cuda:0",
        ),
        (
            "cpu:-1",
            "device 'cpu:-1': the core index '-1' is not a number; write plain digits, as cpu:0",
        ),
        (
            "npu:10000",
            "device 'npu:10000': the NPU index 10000 is out of range; write 0 to 9999",
        ),
        (
            "npu:0:a",
            "device 'npu:0:a': the PE index 'a' is not a number; write 0 to 7, a range as 0-3, "
            "or *",
        ),
        ("npu:0:8", "device 'npu:0:8': the PE index 8 is out of range; write 0 to 7"),
        (
            "npu:0:0-",
            "device 'npu:0:0-': the PE range '0-' is not made of two numbers; write a range as 0-3",
        ),
        (
            "npu:0:4-8",
            "device 'npu:0:4-8': the PE range 4-8 is out of range; write numbers from 0 to 7",
        ),
        ("npu:0:3-0", "device 'npu:0:3-0': the PE range 3-0 runs backwards; write 0-3"),
        (
            "npu:0:0-2",
            "device 'npu:0:0-2': the PE range 0-2 holds 3 PEs; write a range of 1, 2, 4 or 8",
        ),
        (
            "npu:0:1-2",
            "device 'npu:0:1-2': the PE range 1-2 is not aligned to its length 2; "
            "write 0-1, 2-3, 4-5 or 6-7",
        ),
        (
            "npu:0:2-5",
            "device 'npu:0:2-5': the PE range 2-5 is not aligned to its length 4; write 0-3 or 4-7",
        ),
    ],
)
def test_a_wrong_device_is_refused_with_the_part_that_is_wrong(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_devices(text)

    assert str(caught.value) == message


@pytest.mark.parametrize("index", ["٣", "²", "+1", " 1", "01", "00", "1_0", "0x1", "1.0", "*"])
def test_an_index_has_one_spelling(index: str) -> None:
    for text in (f"npu:{index}:0", f"cpu:{index},cpu:9", f"cuda:{index},cuda:9"):
        with pytest.raises(ConfigError, match=r"index .* is not a number"):
            parse_devices(text)


@pytest.mark.parametrize("pe", ["٣", "+1", " 1", "01", "0-٣", "0-03", "0 - 3", "-1", "--", "1-2-3"])
def test_a_pe_has_one_spelling(pe: str) -> None:
    with pytest.raises(ConfigError, match=r"is not a number|is not made of two numbers"):
        parse_devices(f"npu:0:{pe}")


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (
            "npu:0,npu:0:3",
            "devices 'npu:0,npu:0:3': PE npu:0:3 is given twice, by 'npu:0' and 'npu:0:3'; "
            "give each device once",
        ),
        (
            "npu:0:2-3, npu:0:0-3",
            "devices 'npu:0:2-3, npu:0:0-3': PE npu:0:2 is given twice, by 'npu:0:2-3' and "
            "'npu:0:0-3'; give each device once",
        ),
        (
            "cpu,cpu",
            "devices 'cpu,cpu': cpu is given twice, by 'cpu' and 'cpu'; give each device once",
        ),
        (
            "npu:0,cpu",
            "devices 'npu:0,cpu': cpu and npu do not work together; give one kind",
        ),
        ("cpu:1,cpu", "devices 'cpu:1,cpu': cpu has cpu:N in it already; give one of the two"),
        (
            "cuda,cuda:0",
            "devices 'cuda,cuda:0': cuda has cuda:N in it already; give one of the two",
        ),
    ],
)
def test_devices_that_do_not_go_together_are_refused(text: str, message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_devices(text)

    assert str(caught.value) == message


@given(single_devices)
def test_a_device_reads_its_own_name(device: Device) -> None:
    assert parse_devices(str(device)) == (device,)


@given(device_sets)
def test_formatted_devices_read_as_the_same_devices(devices: set[Device]) -> None:
    assert set(parse_devices(format_devices(devices))) == devices


@pytest.mark.parametrize(
    "text", ["npu:0", "npu:0:4-7,npu:1,npu:2:1,npu:2:2-3", "cpu", "cuda:0,cuda:3", "npu:0:7"]
)
def test_devices_are_formatted_in_the_shortest_way(text: str) -> None:
    assert format_devices(parse_devices(text)) == text


@given(st.text() | st.text("npucda:0123789-*, +٣", max_size=12))
@example("npu:" + "9" * 5000)
@example("npu:0:" + "9" * 5000)
@example("npu:0:0-" + "9" * 5000)
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        devices = parse_devices(text)
    except ConfigError:
        return
    assert len(set(devices)) == len(devices) > 0


def test_plain_cuda_becomes_every_gpu() -> None:
    expanded = expand_devices(parse_devices("cuda"), num_gpus=2, cores={0})

    assert expanded == parse_devices("cuda:0,cuda:1")


@pytest.mark.parametrize("text", ["npu:9", "cpu", "cpu:1,cpu:5", "cuda:1"])
def test_devices_that_are_there_stay_as_they_are(text: str) -> None:
    devices = parse_devices(text)

    assert expand_devices(devices, num_gpus=2, cores={1, 5}) == devices


@pytest.mark.parametrize(
    ("text", "num_gpus", "message"),
    [
        ("cuda", 0, "device 'cuda': no GPU was found on this machine; use cpu"),
        ("cuda:1", 0, "device 'cuda:1' is not on .* to use; there are: none"),
        ("cuda:0,cuda:2", 2, "device 'cuda:2' is not on .* to use; there are: cuda:0, cuda:1"),
        ("cpu:4,cpu:5", 0, "device 'cpu:4' is not on .* to use; there are: cpu:1, cpu:5"),
    ],
)
def test_devices_that_are_not_there_are_refused(text: str, num_gpus: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        expand_devices(parse_devices(text), num_gpus=num_gpus, cores={5, 1})
