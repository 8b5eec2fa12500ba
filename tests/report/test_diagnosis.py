"""Faults that are put into real gloo ranks are found and named, and nothing is found where nothing is wrong."""

import ctypes
import mmap
import os
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from opensora_launch.machine.nvml import THROTTLES
from opensora_launch.report.accounting import account
from opensora_launch.report.device_use import HELD_DOWN, SampledNode, nodes_of, rank_use, throttle_code
from opensora_launch.report.diagnosis import Evidence, findings
from opensora_launch.report.wording import Message, message, say
from opensora_launch.rundir import AttemptDir
from opensora_launch.telemetry.heartbeat import Heartbeat
from opensora_launch.telemetry.recorder import Recorder
from opensora_launch.telemetry.sampler import node_sampler
from opensora_launch.telemetry.samples import NodeSamples
from tests.ranks import run_ranks
from tests.report.checked import build
from tests.report.synthetic import a_plan, plain_simulation, write_run

STEPS, BEAT_S, PAGES = 10, 0.1, 3000
LAYOUT = "dp1 cfg2 ring1 ulysses2"


def burn(seconds: float) -> None:
    """Of CPU time, not of the clock's: what else runs on the machine does not shorten it."""
    end = time.thread_time() + seconds
    while time.thread_time() < end:
        pass


class OnDisk:
    """A file whose pages are thrown out of memory, so that each touch reads the disk again."""

    def __init__(self, path: Path) -> None:
        path.write_bytes(os.urandom(PAGES * mmap.PAGESIZE))
        self.file = path.open("r+b")
        os.fsync(self.file.fileno())
        self.map = mmap.mmap(self.file.fileno(), 0)
        self.map.madvise(mmap.MADV_RANDOM)

    def touch(self) -> None:
        self.map.madvise(mmap.MADV_DONTNEED)
        os.posix_fadvise(self.file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        for page in range(PAGES):
            self.map[page * mmap.PAGESIZE]


def work(attempt: str, fault: str) -> None:
    """Ten steps on four ranks, in two groups of two that exchange; the fault is on rank 2, or between 2 and 3."""
    rank, world = dist.get_rank(), dist.get_world_size()
    groups = [dist.new_group([0, 1]), dist.new_group([2, 3])]
    pair = (0, 1) if rank < 2 else (2, 3)
    beat = Heartbeat(Path(attempt, "heartbeat", f"rank{rank}.json"), rank=rank, host="h", interval_s=0.05)
    beat.start()
    meta = {
        "rank": rank, "world": world, "local_rank": rank, "host": "h", "device_name": "a CPU", "threads": 1,
        "layouts": {"2": LAYOUT}, "pid": os.getpid(),
    }  # fmt: skip
    rec = Recorder(Path(attempt, "telemetry", f"rank{rank}.jsonl"), meta, device="cpu", heartbeat=beat)
    sampler = node_sampler(AttemptDir(Path(attempt)), "h") if rank == 0 else None
    if sampler:
        sampler.start()
    disk = OnDisk(Path(attempt, "pages")) if fault == "memory" and rank == 2 else None
    x = torch.ones(1000)
    dist.barrier()
    with rec.span("denoise", video="0000_0"):
        for step in range(STEPS):
            with rec.step("0000_0", step, 2, 1, LAYOUT, STEPS):
                burn(0.01)
                if rank == 2:
                    burn(BEAT_S if fault == "slow" else 0)
                    time.sleep(BEAT_S if fault == "asleep" else 0)
                    if disk:
                        disk.touch()
                with rec.collective("ulysses", pair, 4000):
                    dist.all_reduce(x, group=groups[rank // 2])
                    time.sleep(BEAT_S if fault == "link" and rank >= 2 else 0)
                with rec.collective("video", (0, 1, 2, 3), 4000):
                    dist.all_reduce(x)
    if sampler:
        sampler.close()
    rec.close(0, ["0000_0"])
    beat.close()


def starved(finding: Message) -> bool:
    return bool(finding["code"] == "slow_rank" and finding["cause"]["code"] == "starved")


def found(tmp_path: Path, fault: str) -> tuple[list[Message], dict[str, Any]]:
    plan = a_plan(4, layout__ulysses=2, layout__cfg=2, model__name="tiny")
    run = write_run(tmp_path / "run", plan, [[]], done=["0000_0"])
    run_ranks(4, tmp_path, work, str(run / "attempts/0"), fault)
    return (report := build(run))["attempts"][0]["findings"], report


def test_a_clean_run_has_no_findings(tmp_path: Path) -> None:
    """Where this machine's cores are busy elsewhere a rank may truly starve; nothing else may be said."""
    clean, report = found(tmp_path, "none")
    assert [f for f in clean if not starved(f)] == []
    assert report["attempts"][0]["hosts"][0]["host"] == "h"


def test_a_sleeping_rank(tmp_path: Path) -> None:
    (asleep, *rest), report = found(tmp_path, "asleep")
    assert (asleep["code"], asleep["ranks"], asleep["cause"]["code"]) == ("slow_rank", [2], "asleep")
    assert asleep["seconds"] > STEPS * BEAT_S / 2
    assert asleep["cause"]["asleep_s"] > STEPS * BEAT_S / 2
    assert [f for f in rest if not starved(f)] == []
    assert report["advice"][0]["what"] == asleep
    assert report["advice"][0]["do"] == message("remedy", cause=asleep["cause"])
    assert report["advice"][0]["gain_s"] == asleep["seconds"]


def test_a_slow_rank(tmp_path: Path) -> None:
    """It ran all the time: neither asleep nor short of memory. On a crowded machine it may have starved too."""
    (slow, *_), _ = found(tmp_path, "slow")
    assert (slow["code"], slow["ranks"]) == ("slow_rank", [2])
    assert slow["cause"]["code"] in ("unknown_cause", "starved")


def test_a_slow_link(tmp_path: Path) -> None:
    (link, *rest), _ = found(tmp_path, "link")
    assert (link["code"], link["ranks"], link["axis"]) == ("slow_link", [2, 3], "ulysses")
    assert link["seconds"] > STEPS * BEAT_S / 2
    assert [f for f in rest if not starved(f)] == []


def test_memory_that_is_read_back_from_disk(tmp_path: Path) -> None:
    if on_tmpfs(tmp_path):
        pytest.skip("the files of tests are in memory here: none can be read back from a disk")
    (short, *_), _ = found(tmp_path, "memory")
    assert (short["code"], short["ranks"], short["cause"]["code"]) == ("slow_rank", [2], "memory_short")
    assert short["cause"]["pages"] > 0


def test_the_use_of_a_rank_is_that_of_its_window() -> None:
    """Samples each second; the window ends between two of them, and outside of all nothing is known."""
    samples = tuple(
        {"time_s": float(n), "host": {}, "gpus": [],
         "ranks": [{"rank": 0, "ran_s": 0.5 * n, "starved_s": 0.1 * n, "major_faults": 10 * n}]} for n in range(5)
    )  # fmt: skip
    node = SampledNode(NodeSamples("h", None, None, (), samples, (), {}, 0), tuple(100.0 + n for n in range(5)))
    use, early = rank_use(node, 0, (101.5, 103.25)), rank_use(node, 0, (90.0, 101.0))
    assert use is not None
    assert early is not None
    assert (use.window, early.window) == ((101.5, 103.25), (100.0, 101.0))
    assert [use.ran_s, use.starved_s, use.major_faults] == pytest.approx([0.875, 0.175, 18])
    assert [early.ran_s, early.starved_s, early.major_faults] == pytest.approx([0.5, 0.1, 10])
    assert rank_use(node, 0, (104.5, 110.0)) is None
    assert rank_use(node, 1, (101.0, 103.0)) is None


def on_tmpfs(path: Path) -> bool:
    """By statfs's magic number."""
    libc, room = ctypes.CDLL(None), ctypes.create_string_buffer(256)
    assert libc.statfs(os.fsencode(path), room) == 0
    return int.from_bytes(room.raw[:4], "little") == 0x01021994


def scene(
    gpus: list[dict[str, Any]],
    *,
    slow: Sequence[float] = (1.0, 1.5),
    names: str | Sequence[str] = "XX",
    nvml: str = "GPU-",
) -> list[Message]:
    """Ranks on a GPU each, of these names, of which the last is 1.5 times as slow; every sample says `gpus` of them.

    `nvml` begins the driver's UUIDs of them.
    """
    sim = plain_simulation(len(gpus), slow=slow)
    events = [
        replace(e, meta=replace(e.meta, device="cuda", device_uuid=f"GPU-{r}", device_name=names[r]))
        for r, e in enumerate(sim.events())
    ]
    accounts = account(events)
    facts = tuple({"index": n, "uuid": f"{nvml}{n}", "name": name, "sm_mhz_max": 1980} for n, name in enumerate(names))
    times = [sim.clock(0, 0.25 * n) for n in range(160)]
    samples = tuple({"time_s": t, "host": {}, "ranks": [], "gpus": gpus} for t in times)
    node = NodeSamples("host-a", "570", None, facts, samples, (), {}, 0)
    return findings(Evidence(events, accounts, nodes_of([node], accounts), 24))


def gpu(index: int, **values: Any) -> dict[str, Any]:
    return {"gpu": index, "sm_mhz": 1980, "throttled": [], "processes": [[index, 1]]} | values


def test_a_slow_rank_on_a_mig_instance_is_named_as_the_driver_does() -> None:
    (slow,) = scene([gpu(0), gpu(1)], nvml="MIG-")
    assert (slow["code"], slow["ranks"], slow["gpu"], slow["gpu_name"]) == ("slow_rank", [1], "MIG-1", "GPU 1")


def test_a_hot_gpu_is_the_cause() -> None:
    hot = gpu(1, sm_mhz=1300, throttled=["too hot (hardware)"])
    slow, heat = scene([gpu(0), hot])
    assert (slow["code"], slow["ranks"], slow["gpu"]) == ("slow_rank", [1], "GPU-1")
    reasons = [message("too_hot_hardware", share=1.0)]
    assert slow["cause"] == message("gpu_throttled", reasons=reasons, sm_mhz=1300, others_sm_mhz=1980)
    assert slow["seconds"] == pytest.approx(8.0)
    assert say(slow["cause"]) == (
        "Throttle reasons: too hot (hardware) in 100% of the readings. Its GPU ran at 1300 MHz, the others at 1980 MHz."
    )
    assert (heat["code"], heat["ranks"], heat["reasons"]) == ("throttled", [1], reasons)
    assert say(heat, "title") == "GPU 1 was throttled (host-a, rank 1)"
    assert say(heat) == ("Reasons: too hot (hardware) in 100% of the readings. The median clock was 1300 of 1980 MHz.")


@pytest.mark.parametrize("why", ["power cap", "locked clocks", "clocks in step with another GPU"])
def test_clocks_that_are_as_somebody_wants_them_are_no_finding(why: str) -> None:
    assert why in THROTTLES
    held = [gpu(n, sm_mhz=1700, throttled=[why]) for n in range(2)]
    assert scene(held, slow=[1.0, 1.0]) == []
    assert scene([gpu(0), gpu(1)], slow=[1.0, 1.1]) == []
    (slow,) = scene([gpu(n, sm_mhz=None, throttled=[why]) for n in range(2)])
    assert (slow["code"], slow["cause"]) == ("slow_rank", message("unknown_cause"))


@pytest.mark.parametrize("why", sorted(why for why in THROTTLES if throttle_code(why) in HELD_DOWN))
def test_heat_power_and_faults_are_findings_on_every_card(why: str) -> None:
    found = scene([gpu(n, throttled=[why, "locked clocks"]) for n in range(2)], slow=[1.0, 1.0])
    assert [(f["code"], f["ranks"]) for f in found] == [("throttled", [0]), ("throttled", [1])]
    assert say(found[0]) == f"Reasons: {why} in 100% of the readings. The median clock was 1980 of 1980 MHz."


def test_faults_that_throttle_are_reasons_of_the_driver() -> None:
    assert {throttle_code(why) for why in THROTTLES} > HELD_DOWN


@pytest.mark.parametrize(
    ("last", "names", "cause"),
    [
        (gpu(1, processes=[[1, 1], [77, 1]]), "XX", "gpu_shared"),
        (gpu(1), ["X", "an older card"], "slower_card"),
        (gpu(1, sm_mhz=1200), "XX", "gpu_throttled"),
        (gpu(1), "XX", "unknown_cause"),
    ],
)
def test_other_causes_on_gpus(last: dict[str, Any], names: Sequence[str], cause: str) -> None:
    slow = scene([gpu(0), last], names=names)[0]
    assert (slow["code"], slow["ranks"], slow["cause"]["code"]) == ("slow_rank", [1], cause)


def test_slower_cards_among_faster_ones() -> None:
    """Two of each: that the other slow rank has such a card too does not hide it, nor do two kinds of fast ones."""
    gpus = [gpu(0), gpu(1), gpu(2, sm_mhz=1200), gpu(3, sm_mhz=1200)]
    for names, fast in (("AACC", ["A"]), ("ABCC", ["A", "B"])):
        found = scene(gpus, slow=[1.0, 1.0, 1.4, 1.5], names=names)
        assert {f["code"] for f in found} == {"slow_rank"}
        assert all(f["cause"] == message("slower_card", card="C", faster_cards=fast) for f in found)
    assert [f["ranks"] for f in found] == [[3]]


def test_clocks_are_compared_among_cards_of_one_name() -> None:
    """Rank 3 runs at the clock of its kind, which is lower than that of another."""
    gpus = [gpu(0, sm_mhz=1200), gpu(1), gpu(2), gpu(3, sm_mhz=1200)]
    (slow,) = scene(gpus, slow=[1.0, 1.0, 1.0, 1.5], names="CAAC")
    assert (slow["ranks"], slow["cause"]["code"]) == ([3], "unknown_cause")


def test_more_work_is_the_cause_where_heads_do_not_divide() -> None:
    """Three heads on two ranks: the first has two of them, and takes twice as long."""
    events = plain_simulation(2, slow=[2.0, 1.0]).events()
    accounts = account(events)
    (slow,) = findings(Evidence(events, accounts, (), 3))
    assert (slow["ranks"], slow["cause"]) == ([0], message("more_work", times=2.0))
    assert findings(Evidence(events, accounts, (), 24))[0]["cause"] == message("unknown_cause")


def test_errors_of_a_gpu_and_a_host_short_of_memory() -> None:
    events = [
        replace(e, meta=replace(e.meta, device="cuda", device_uuid="GPU-0")) for e in plain_simulation(1).events()
    ]
    accounts = account(events)
    facts = ({"index": 0, "uuid": "GPU-0", "name": "X"},)
    zero = events[0].meta.start_s
    samples = tuple(
        {"time_s": zero + n, "host": {"memory_stall_s": 3.0 * n, "available_bytes": 1 << 30}, "ranks": [],
         "gpus": [{"gpu": 0, "ecc_uncorrected": n}]}
        for n in (0, 10)
    )  # fmt: skip
    xids = ({"time_s": zero, "uuid": "GPU-0", "xid": 79},)
    node = NodeSamples("host-a", "570", None, facts, samples, xids, {}, 0)
    error = "GPU 0 reported an error (host-a, rank 0)"
    found = findings(Evidence(events, accounts, nodes_of([node], accounts), 24))
    assert [(f["code"], say(f, "title"), ". ".join(say(f).split(". ")[:-1])) for f in found] == [
        ("memory", "Memory was short on host-a", "Tasks waited 30.00 s for memory"),
        ("gpu_error", error, "XID 79: the GPU is no longer reachable over PCIe"),
        ("gpu_error", error, "10 memory errors that ECC could not correct"),
    ]
