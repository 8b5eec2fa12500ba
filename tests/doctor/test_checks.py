"""Host, GPUs, links and builds: what is judged good and what is not, on made-up machines."""

from dataclasses import replace

import pytest

from opensora_launch.doctor.build_checks import check_builds, check_trials
from opensora_launch.doctor.check_result import CheckResult, Level, lines, ok, size_text, worst
from opensora_launch.doctor.gpu_checks import check_gpu_memory, check_gpu_state, check_links
from opensora_launch.doctor.host_checks import Needs, check_limits, check_memory_and_disk
from opensora_launch.doctor.torch_facts import TorchFacts, version_number
from opensora_launch.machine.host import Disk, HostFacts, KernelClock
from opensora_launch.machine.host_gpus import GpuFacts, HostGpus, PairFacts

GIB = 2**30
HOST = HostFacts(64 * GIB, 8 * GIB, (Disk("runs", 100 * GIB, True),), 65536, -1, -1, KernelClock(True, 0.01))
NEEDS = Needs(ranks=4, nodes=1, on_gpu=True)
GPU = GpuFacts(
    0, "GPU-a", "NVIDIA H100 80GB HBM3", 80 * GIB, 79 * GIB, (9, 0), 0, False, (), False, (), 700.0, 700.0,
    (5, 5, 16, 16),
)  # fmt: skip
TORCH = TorchFacts("2.13.0", "12.8", None, True, ("sm_80", "sm_90", "sm_120"), "2.27.3", {})
MACHINE = HostGpus((GPU,), (), "570.86.10", (12, 8), None)


def said(found: list[CheckResult]) -> list[str]:
    return [f"{finding.level.value} {finding.check}" for finding in found]


def test_a_good_host() -> None:
    assert said(check_memory_and_disk(HOST, NEEDS)) == ["ok memory", "ok disk"]
    assert said(check_limits(HOST, replace(NEEDS, nodes=2))) == ["ok shm", "ok limits", "ok clock"]
    assert said(check_limits(HOST, NEEDS)) == ["ok shm", "ok limits"]  # one node needs no common clock


@pytest.mark.parametrize(
    ("host", "needs", "expected"),
    [
        (HOST, replace(NEEDS, host_weight_bytes=65.0 * GIB), "fail memory"),
        (HOST, replace(NEEDS, host_bytes=65.0 * GIB), "warn memory"),
        (HOST, replace(NEEDS, host_bytes=63.0 * GIB), "ok memory"),
        (replace(HOST, disks=(Disk("runs", 9, False),)), NEEDS, "fail disk"),
        (replace(HOST, disks=(Disk("runs", 5 * GIB, True),)), replace(NEEDS, disk_bytes=6.0 * GIB), "fail disk"),
        (replace(HOST, disks=(Disk("runs", GIB // 2, True),)), NEEDS, "warn disk"),
    ],
)
def test_memory_and_disk(host: HostFacts, needs: Needs, expected: str) -> None:
    assert expected in said(check_memory_and_disk(host, needs))


@pytest.mark.parametrize(
    ("host", "needs", "expected"),
    [
        (replace(HOST, shm_bytes=64 * 2**20), NEEDS, "warn shm"),  # what docker gives unasked
        (replace(HOST, shm_bytes=64 * 2**20), replace(NEEDS, ranks=1), "ok shm"),
        (replace(HOST, shm_bytes=200 * 2**20), replace(NEEDS, ranks=8), "warn shm"),
        (replace(HOST, open_files=256), NEEDS, "warn limits"),
        (replace(HOST, processes=512), NEEDS, "warn limits"),
        (replace(HOST, locked_bytes=65536), replace(NEEDS, nodes=2), "warn limits"),
        (replace(HOST, locked_bytes=65536), NEEDS, "ok limits"),
        (replace(HOST, clock=KernelClock(False, 16.0)), replace(NEEDS, nodes=2), "warn clock"),
        (replace(HOST, clock=KernelClock(True, 0.9)), replace(NEEDS, nodes=2), "warn clock"),
    ],
)
def test_limits(host: HostFacts, needs: Needs, expected: str) -> None:
    assert expected in said(check_limits(host, needs))


def test_gpu_memory() -> None:
    busy = replace(GPU, index=2, free_bytes=30 * GIB, processes=((77, 40 * GIB), (78, None), (9, GIB)))
    assert said(check_gpu_memory([GPU], NEEDS, ())) == ["ok gpu memory"]
    (shared,) = check_gpu_memory([busy], NEEDS, {9})
    assert shared.level is Level.warn
    assert "GPU 2 (H100 80GB HBM3): 30.0 GiB of 80.0 GiB free; process 77 (40.0 GiB), process 78 on it" in shared.what
    tight = replace(NEEDS, gpu_bytes=44.0 * GIB, gpu_weight_bytes=22.0 * GIB)
    assert said(check_gpu_memory([busy], tight, ())) == ["warn gpu memory"]
    assert said(check_gpu_memory([busy], replace(tight, gpu_weight_bytes=31.0 * GIB), ())) == ["fail gpu memory"]
    assert check_gpu_memory([replace(GPU, free_bytes=None)], NEEDS, ()) == []


@pytest.mark.parametrize(
    ("gpu", "expected", "fix"),
    [
        (replace(GPU, ecc_errors=3), "fail ecc", "nvidia-smi -r -i 0"),
        (replace(GPU, remap_pending=True), "warn ecc", "nvidia-smi -r -i 0"),
        (replace(GPU, remap_failed=True), "fail ecc", "replace the card (RMA)"),
        (replace(GPU, throttled=("too hot (driver)",)), "warn throttled", "air"),
        (replace(GPU, throttled=("locked clocks",)), "warn throttled", "nvidia-smi -rgc"),
        (replace(GPU, power_limit_w=500.0), "warn power", "nvidia-smi -pl 700"),
        (replace(GPU, mig=True), "warn mig", "nvidia-smi -mig 0"),
        (replace(GPU, pcie=(1, 5, 4, 16)), "warn pcie", "slot"),
    ],
)
def test_gpu_state(gpu: GpuFacts, expected: str, fix: str) -> None:
    (finding,) = check_gpu_state([gpu])
    assert said([finding]) == [expected]
    assert fix in finding.fix
    one, healthy = check_gpu_state([gpu, replace(GPU, index=1)])
    assert (one, healthy.level) == (finding, Level.ok)
    assert "1 x H100" in healthy.what


def test_a_sensor_that_does_not_answer_is_not_good_news() -> None:
    (fine,) = check_gpu_state([GPU])
    assert fine.what == "1 x H100 80GB HBM3: no errors, not throttled, full power limit, MIG off"
    silent = replace(GPU, index=1, ecc_errors=None, throttled=None, power_default_w=None)
    assert [one.what for one in check_gpu_state([GPU, silent])] == [
        fine.what,
        "1 x H100 80GB HBM3: MIG off, the driver does not report memory errors, throttling, the power limit",
    ]


def test_memory_that_a_gpu_shares_with_its_host() -> None:
    shared = replace(GPU, name="NVIDIA GB10", total_bytes=None, free_bytes=None, shares_memory=True)
    (fine,) = check_gpu_memory([shared], NEEDS, (), 100 * GIB)
    assert (fine.what, fine.value) == ("GPU 0 (GB10): 100.0 GiB free of the host's memory, which it shares", 100)
    (short,) = check_gpu_memory([shared], replace(NEEDS, gpu_weight_bytes=101.0 * GIB), (), 100 * GIB)
    assert (short.level, short.fix) == (Level.fail, "use placement.storage=fp8, or more GPUs")


def test_the_only_gpu_is_not_to_be_excluded() -> None:
    busy = replace(GPU, processes=((77, None),))
    assert [one.fix for one in check_gpu_memory([busy], NEEDS, ())] == ["end it"]
    assert "CUDA_VISIBLE_DEVICES without 0" in check_gpu_memory([busy, replace(GPU, index=1)], NEEDS, ())[0].fix


def test_links() -> None:
    pairs = (PairFacts(0, 1, "NV18", "ok"), PairFacts(0, 2, "SYS", "GPU not supported"), PairFacts(1, 2, "PHB", "ok"))
    host = replace(MACHINE, pairs=pairs)
    fast, slow, through = check_links(host, {0, 1, 2})
    assert (fast.level, fast.what) == (Level.ok, "GPUs 0-1: NV18, peer access ok")
    assert (slow.level, slow.fix) == (Level.warn, "none; this kind of card has no peer access")
    assert through.level is Level.ok
    assert len(check_links(host, {0, 1})) == 1
    (off,) = check_links(replace(MACHINE, pairs=(PairFacts(0, 1, "PHB", "chipset not supported"),)), {0, 1})
    assert "ACS and IOMMU" in off.fix


def test_builds_that_fit() -> None:
    assert said(check_builds(MACHINE, TORCH, "", wants_gpu=True)) == ["ok torch", "ok driver", "ok kernels"]
    cpu = TorchFacts("2.13.0+cpu", None, None, False, (), None, {})
    assert said(check_builds(HostGpus((), (), None, None, "no driver"), cpu, "", wants_gpu=False)) == ["ok torch"]


@pytest.mark.parametrize(
    ("host", "torch", "expected", "part"),
    [
        (MACHINE, None, "fail torch", "cannot be imported: no module"),
        (MACHINE, replace(TORCH, version="2.4.1"), "fail torch", "too old"),
        (
            MACHINE,
            replace(TORCH, cuda=None, nccl=None, available=False),
            "fail torch",
            "for the CPU only, but this host has 1 GPU",
        ),
        (MACHINE, replace(TORCH, available=False), "fail torch", "sees no GPU"),
        (replace(MACHINE, driver="470.57.02", cuda=(11, 4)), TORCH, "fail driver", "CUDA 12.8 needs 525.60"),
        (MACHINE, replace(TORCH, cuda="13.0"), "fail driver", "CUDA 13.0 needs 580.65"),
        (replace(MACHINE, driver="535.129.03", cuda=(12, 2)), TORCH, "warn driver", "PTX"),
        (replace(MACHINE, gpus=(replace(GPU, capability=(7, 0)),)), TORCH, "fail torch", "no code for NVIDIA H100"),
        (MACHINE, replace(TORCH, kernels={"flash-attn 2": "undefined symbol"}), "warn kernels", "another torch"),
        (MACHINE, replace(TORCH, kernels={"flash-attn 3": ""}), "ok kernels", "loads"),
        (MACHINE, replace(TORCH, cudnn=91002), "warn cudnn", "9.10.2 with torch 2.13.0: large 3D convolutions"),
        (MACHINE, replace(TORCH, cudnn=90800), "warn cudnn", "9.8.0"),
        (MACHINE, replace(TORCH, cudnn=91500), "ok cudnn", "9.15.0"),
        (MACHINE, replace(TORCH, cudnn=90701), "ok cudnn", "9.7.1"),
        (
            replace(MACHINE, gpus=(replace(GPU, capability=(8, 9)),)),
            replace(TORCH, kernels={"flash-attn 3": ""}),
            "warn kernels",
            "needs compute capability 9.0",
        ),
    ],
)
def test_builds(host: HostGpus, torch: TorchFacts | None, expected: str, part: str) -> None:
    found = check_builds(host, torch, "no module", wants_gpu=True)
    hits = [finding for finding in found if said([finding]) == [expected] and part in finding.what]
    assert len(hits) == 1, found


def test_the_trial_of_kernels() -> None:
    good, bad = check_trials({"flash3": "RuntimeError: no kernel image", "cudnn": "", "sdpa_flash": ""}, "")
    assert (good.level, good.what) == (Level.ok, "cudnn, sdpa_flash: equal to the reference on this GPU")
    assert (bad.level, bad.check) == (Level.warn, "kernels")
    assert "flash3 fails on this GPU: RuntimeError: no kernel image; attention=auto does not use it" in bad.what
    exact, rounded = check_trials({"flash3": "", "sage2": "", "flash3_fp8": ""}, "")
    assert exact.what.startswith("flash3: equal to the reference")
    assert rounded.what.startswith("sage2, flash3_fp8: as close to the reference as 8 bits are")
    (ended,) = check_trials(None, "exit code -11")
    assert (ended.level, ended.what) == (Level.warn, "the trial of the attention kernels ended: exit code -11")


@pytest.mark.parametrize(
    ("capability", "archs", "runs"),
    [
        ((8, 9), ("sm_80",), True),  # of one major version, the older code runs
        ((8, 0), ("sm_86",), False),
        ((12, 0), ("sm_90",), False),
        ((12, 0), ("sm_90", "compute_90"), True),  # PTX is compiled for newer cards
        ((9, 0), ("sm_90a",), True),
    ],
)
def test_code_for_a_card(capability: tuple[int, int], archs: tuple[str, ...], runs: bool) -> None:
    host = replace(MACHINE, gpus=(replace(GPU, capability=capability),))
    found = check_builds(host, replace(TORCH, archs=archs), "", wants_gpu=True)
    assert ("fail torch" in said(found)) is not runs


def test_versions() -> None:
    assert version_number("2.13.0+cpu") == (2, 13)
    assert version_number("570.86.10") == (570, 86)
    assert version_number("dev") is None


def test_lines_are_aligned_and_hosts_named_where_there_are_several() -> None:
    bad = CheckResult(Level.fail, "gpu memory", "none", "buy some", "money", host="b")
    assert lines([replace(ok("shm", "fine"), host="b"), bad]) == [
        "ok    shm         fine",
        "fail  gpu memory  none; fix: buy some (money)",
    ]
    assert lines([replace(ok("shm", "fine"), host="a1"), bad])[1] == "fail  b   gpu memory  none; fix: buy some (money)"
    assert worst([ok("a", "b"), bad]) is Level.fail
    assert worst([]) is Level.ok
    assert [size_text(count) for count in (3 * GIB, 64 * 2**20, 90_000, 0)] == ["3.0 GiB", "64 MiB", "88 KiB", "0 KiB"]
