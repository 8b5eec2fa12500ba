"""Which GPUs CUDA shows for a value of CUDA_VISIBLE_DEVICES."""

from dataclasses import dataclass

import pytest

from opensora_launch.machine.visible import visible_gpus


@dataclass(frozen=True)
class Device:
    uuid: str


FOUR = [Device(f"GPU-{name}") for name in ("aaaa-1", "aabb-2", "cccc-3", "dddd-4")]
PARTS = [Device("MIG-1234"), Device("MIG-1299"), Device("MIG-GPU-cccc-3/1/0")]


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        (None, [0, 1, 2, 3]),
        ("", []),
        ("-1", []),
        ("0", [0]),
        ("2,0", [2, 0]),
        (" 1 , 3 ", [1, 3]),
        ("0,9,1", [0]),
        ("0,-1,1", [0]),
        ("0,,1", [0]),
        ("4", []),
        ("1x,+2", [1, 2]),
        ("x1", []),
        ("0,0", []),
        ("0,1,0", []),
        ("0,9,0", [0]),
        ("GPU-cccc-3", [2]),
        ("GPU-d,GPU-c", [3, 2]),
        ("GPU-aa", []),
        ("GPU-", []),
        ("gpu-cccc-3", []),
        ("cccc-3", []),
        ("GPU-zzzz", []),
        ("GPU-c,GPU-zzzz,GPU-d", [2]),
        ("GPU-c,GPU-cccc-3", []),
        ("0,GPU-dddd-4", [0]),
        ("GPU-dddd-4,0", [3]),
        ("NoDevFiles", []),
        ("\u00b2", []),
        ("MIG-x", []),
    ],
)
def test_whole_gpus(setting: str | None, shown: list[int]) -> None:
    assert visible_gpus(FOUR, setting) == tuple(FOUR[n] for n in shown)
    assert visible_gpus([FOUR[0], *PARTS, *FOUR[1:]], setting) == tuple(FOUR[n] for n in shown), "instances count not"
    assert visible_gpus([], setting) == ()


@pytest.mark.parametrize(
    ("setting", "shown"),
    [
        ("MIG-1234", [0]),
        ("MIG-12", []),
        ("MIG-GPU-cccc-3/1/0", [2]),
        ("MIG-1299,MIG-1234", [1]),
        ("MIG-1234,MIG-1234", []),
        ("MIG-zzzz,MIG-1234", []),
        ("MIG-1234,0", [0]),
    ],
)
def test_one_instance_at_most(setting: str, shown: list[int]) -> None:
    assert visible_gpus([*FOUR, *PARTS], setting) == tuple(PARTS[n] for n in shown)
