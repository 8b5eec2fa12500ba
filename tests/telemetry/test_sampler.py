"""Samples of GPUs by the real nvidia-ml-py on a stub driver, and of this host by /proc."""

import json
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from opensora_launch.errors import UserError
from opensora_launch.machine.host import host_sample, process_sample, rank_samples
from opensora_launch.machine.nvml import READINGS, TRIES, Gpu
from opensora_launch.telemetry.sampler import Sampler
from opensora_launch.telemetry.samples import NodeSamples, read_samples
from tests.nvml_stub import build_stub

RUN = """
import os, sys, time
from pathlib import Path
from opensora_launch.telemetry.sampler import Sampler
path, end = Path(sys.argv[1]), time.monotonic() + 100
sampler = Sampler(path, "h", lambda: {3: os.getpid()}, interval_s=0.02)
sampler.start()
while not (path.exists() and path.read_text().count('"kind": "sample"') > 5):
    assert time.monotonic() < end
    time.sleep(0.02)
sampler.close()
assert sampler.problem is None, sampler.problem
assert "torch" not in sys.modules
"""


def sampled(tmp_path: Path, *options: str) -> NodeSamples:
    path = tmp_path / "node-h.jsonl"
    env = build_stub(tmp_path / "lib", *options) | {"PYTHONPATH": os.pathsep.join(sys.path)}
    subprocess.run([sys.executable, "-c", RUN, str(path)], env=env, check=True)
    node = read_samples(path)
    assert node is not None
    assert (node.host, node.bad_lines) == ("h", 0)
    return node


def test_every_reading_of_the_driver(tmp_path: Path) -> None:
    node = sampled(tmp_path, "HOT", "BUSY", "XID")
    assert (node.driver, node.no_gpus, node.refused) == ("570.86.10", None, {})
    assert node.gpus == (
        {"index": 0, "uuid": "GPU-0000-0", "name": "Stub GPU", "memory_bytes": 80 << 30, "power_limit_w": 700.0,
         "sm_mhz_max": 1980},
        {"index": 1, "uuid": "GPU-0000-1", "name": "Stub GPU", "memory_bytes": 80 << 30, "power_limit_w": 700.0,
         "sm_mhz_max": 1980},
    )  # fmt: skip
    first, last = node.samples[0]["gpus"]
    pid = first["processes"][0][0]
    assert first == {
        "gpu": 0, "util": 0.9, "memory_util": 0.4, "memory_used_bytes": 20 << 30, "power_w": 400.0,
        "energy_j": first["energy_j"], "sm_mhz": 1980, "memory_mhz": 2619, "throttled": [],
        "nvlink_tx_bytes": 1138 * 1024, "nvlink_rx_bytes": 1139 * 1024, "temperature_c": 55,
        "pcie_tx_bytes_per_s": 2_000_000, "pcie_rx_bytes_per_s": 3_000_000, "ecc_corrected": 7, "ecc_uncorrected": 0,
        "processes": [[pid, 20 << 30]],
    }  # fmt: skip
    assert (last["throttled"], last["sm_mhz"], last["temperature_c"]) == (["too hot (driver)"], 990, 91)
    assert last["processes"] == [[pid, 20 << 30], [4242, 10 << 30]]
    assert [(x["uuid"], x["xid"]) for x in node.xids] == [("GPU-0000-1", 79)]
    later = node.samples[-1]
    spent = later["gpus"][0]["energy_j"] - first["energy_j"]
    times = [s["time_s"] for s in node.samples]
    passed_s = times[-1] - times[0]
    assert 0.2 < spent / (400 * passed_s) < 5, "on a busy machine the driver is asked some time after the clock"
    slow = [s["time_s"] for s in node.samples if "pcie_tx_bytes_per_s" in s["gpus"][0]]
    assert len(slow) <= 2 + passed_s, "slow readings are taken once a second"
    assert node.samples[0]["ranks"][0]["rank"] == 3
    assert len(times) > 5
    assert times == sorted(times)


def test_what_the_driver_refuses_is_named_once(tmp_path: Path) -> None:
    """An older driver under a container: no power, no PCIe counters, no events, NVLink's values without a card."""
    names = "nvmlDeviceGetPcieThroughput nvmlEventSetCreate nvmlDeviceGetFieldValues nvmlDeviceGetTotalEccErrors"
    node = sampled(
        tmp_path, f'REFUSE="{names}"', "NO_nvmlDeviceGetPowerUsage", "NO_nvmlDeviceGetCurrentClocksEventReasons", "HOT"
    )
    reasons = {"pcie": "Not Supported", "xid": "Not Supported", "nvlink": "Not Supported", "ecc": "Not Supported"}
    assert node.refused == reasons | {"power": "Function Not Found"}
    for gpu in (g for s in node.samples for g in s["gpus"]):
        assert not {"power_w", "pcie_tx_bytes_per_s", "nvlink_tx_bytes", "ecc_corrected"} & gpu.keys()
        assert (gpu["util"], gpu["memory_used_bytes"]) == (0.9, 20 << 30)
    assert node.samples[0]["gpus"][1]["throttled"] == ["too hot (driver)"]  # by the function's former name


def test_a_gpu_that_is_not_listened_to_does_not_silence_the_others(tmp_path: Path) -> None:
    node = sampled(tmp_path, "XID", "DEAF=1")
    assert [(x["uuid"], x["xid"]) for x in node.xids] == [("GPU-0000-1", 79)]
    assert node.refused == {"xid": "Not Supported"}
    silent = sampled(tmp_path / "none", "XID", "DEAF=3")
    assert (silent.xids, silent.refused) == ((), {"xid": "Not Supported"})


def test_a_mig_instance_stands_beside_its_gpu(tmp_path: Path) -> None:
    node = sampled(tmp_path, "GPUS=1", "MIG")
    assert [(g["uuid"], g.get("mig_of")) for g in node.gpus] == [("GPU-0000-0", None), ("MIG-0000-0", "GPU-0000-0")]
    whole, part = node.samples[0]["gpus"]
    assert (whole["util"], part.get("util"), part["memory_used_bytes"]) == (0.9, None, 20 << 30)
    assert node.refused == {"utilisation": "Not Supported"}


def test_a_reading_that_breaks_does_not_take_the_others_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A handle without what is read of it, as with another version of nvidia-ml-py; and a name that is no UTF-8."""
    gpu = Gpu(0, "GPU-0", "X", None)
    monkeypatch.setitem(READINGS, "clocks", lambda handle: {"sm_mhz": handle.clock})
    monkeypatch.setitem(READINGS, "power", lambda handle: {"power_w": 1.0})
    found = [gpu.read("clocks") for _ in range(TRIES)]
    assert (found, gpu.failures["clocks"]) == ([{}] * TRIES, TRIES)
    assert gpu.refused == {"clocks": "AttributeError: 'NoneType' object has no attribute 'clock'"}
    assert gpu.read("power") == {"power_w": 1.0}
    node = sampled(tmp_path, r'NAME="\xff"')
    assert (node.gpus, node.problem) == ((), None)
    assert (node.no_gpus or "").startswith("UnicodeDecodeError: ")
    assert len(node.samples) > 1


def test_why_a_sampler_stopped_is_in_its_file(tmp_path: Path) -> None:
    sampler = Sampler(tmp_path / "node.jsonl", "h", lambda: {0: 1 // 0})
    sampler.start()
    sampler.close()
    node = read_samples(tmp_path / "node.jsonl")
    assert node is not None
    assert (node.host, node.samples, node.bad_lines) == ("h", (), 0)
    assert node.problem == sampler.problem == "ZeroDivisionError: integer division or modulo by zero"


def test_without_a_driver_the_host_is_sampled(tmp_path: Path) -> None:
    sampler = Sampler(tmp_path / "telemetry/node-h.jsonl", "h", lambda: {0: os.getpid()}, interval_s=0.02)
    sampler.start()
    end = time.monotonic() + 1.0  # long against a sample, which waits for the interpreter's lock at each file it reads
    while time.monotonic() < end:
        sum(range(1000))
    sampler.close()
    assert sampler.problem is None
    node = read_samples(tmp_path / "telemetry/node-h.jsonl")
    assert node is not None
    assert (node.driver, node.gpus) == (None, ())
    assert "is not found" in (node.no_gpus or "")
    first, last = node.samples[0], node.samples[-1]
    assert last["host"]["memory_bytes"] == os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    assert 0 < last["host"]["cpu_busy_s"] <= last["host"]["cpu_all_s"]
    passed = last["time_s"] - first["time_s"]
    ran = last["ranks"][0]["ran_s"] - first["ranks"][0]["ran_s"]
    starved = last["ranks"][0]["starved_s"] - first["ranks"][0]["starved_s"]
    assert ran + starved == pytest.approx(passed, rel=0.5)  # this thread never slept


def test_a_sampler_never_stops_a_run(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    sampler = Sampler(tmp_path / "file/node.jsonl", "h", dict)
    sampler.start()
    sampler.close()
    assert "FileExistsError" in (sampler.problem or "") or "NotADirectoryError" in (sampler.problem or "")


def test_proc_as_it_is_elsewhere(tmp_path: Path) -> None:
    (tmp_path / "pressure").mkdir()
    (tmp_path / "7").mkdir()
    (tmp_path / "stat").write_text("cpu  100 0 50 800 50 0 0 0 0 0\n")
    (tmp_path / "meminfo").write_text("MemTotal:  1000 kB\nMemAvailable:  250 kB\n")
    (tmp_path / "pressure/memory").write_text("some avg10=0.00 avg60=0.00 avg300=0.00 total=2500000\nfull total=1\n")
    (tmp_path / "7/stat").write_text("7 (a (b) c) R 1 1 1 0 -1 0 9 0 12 0 150 50 0 0 20 0 3 0 55 4096000 10 0\n")
    (tmp_path / "7/schedstat").write_text("3000000000 1500000000 12\n")
    ticks, page = os.sysconf("SC_CLK_TCK"), os.sysconf("SC_PAGE_SIZE")
    assert host_sample(tmp_path) == {
        "cpu_all_s": 1000 / ticks, "cpu_busy_s": 150 / ticks, "memory_bytes": 1_024_000, "available_bytes": 256_000,
        "memory_stall_s": 2.5,
    }  # fmt: skip
    assert process_sample(7, tmp_path) == {
        "cpu_s": 200 / ticks, "major_faults": 12, "memory_bytes": 10 * page, "ran_s": 3.0, "starved_s": 1.5,
    }  # fmt: skip
    assert (host_sample(tmp_path / "none"), process_sample(8, tmp_path)) == ({}, {})
    assert rank_samples({0: 2**22 + 1}) == []


def test_samples_of_wrong_types_are_left_out(tmp_path: Path) -> None:
    """A torn line, a word for a number, a list for a dict, and numbers that JSON does not have."""
    meta = {"kind": "meta", "schema": 1, "host": "h", "interval_s": 1, "driver": None, "no_gpus": None, "gpus": []}
    right = {"kind": "sample", "time_s": 1.0, "host": {"cpu_busy_s": 1}, "ranks": [{"rank": 0}], "gpus": [{"gpu": 0}]}
    wrong = [
        right | {"time_s": "1"}, right | {"host": []}, right | {"host": {"cpu_busy_s": "x"}}, right | {"ranks": [{}]},
        right | {"gpus": [{"gpu": 0, "power_w": float("nan")}]}, right | {"gpus": [{"gpu": 0, "throttled": [1]}]},
        right | {"gpus": {"gpu": 0}}, {"kind": "xid", "time_s": 1.0, "uuid": None, "xid": 1}, {"kind": "none"}, [],
    ]  # fmt: skip
    path = tmp_path / "node.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in (meta, *wrong, right)) + '{"kind": "sa')
    node = read_samples(path)
    assert node is not None
    assert (len(node.samples), len(node.xids), node.bad_lines) == (1, 0, len(wrong) + 1)
    path.write_text(json.dumps(meta | {"gpus": [{"index": 0}]}))
    assert read_samples(path) is None


def test_the_last_bytes_of_a_file(tmp_path: Path) -> None:
    """Wherever they begin, every line that is whole in them is there, and the first line of the file."""
    meta = {"kind": "meta", "schema": 1, "host": "höst", "interval_s": 1, "driver": None, "no_gpus": None, "gpus": []}
    lines = [{"kind": "sample", "time_s": n, "host": {}, "ranks": [], "gpus": []} for n in range(4)]
    path = tmp_path / "node.jsonl"
    path.write_text("".join(json.dumps(line, ensure_ascii=False) + "\n" for line in (meta, *lines)))
    size = len(json.dumps(lines[0])) + 1
    for last_bytes in range(5 * size):
        node = read_samples(path, last_bytes)
        assert node is not None
        assert (node.host, node.bad_lines) == ("höst", 0)
        assert [s["time_s"] for s in node.samples] == list(range(max(0, 4 - last_bytes // size), 4))


def test_files_that_cannot_be_read(tmp_path: Path) -> None:
    path = tmp_path / "node.jsonl"
    path.write_text('{"kind": "me')
    assert read_samples(path) is None
    path.write_text('{"kind": "meta", "schema": 9}')
    with pytest.raises(UserError, match="schema 9; this version reads schema 1"):
        read_samples(path)
