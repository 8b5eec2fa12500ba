"""Which GPUs of a host are taken, and what is said of them; then the same through a stub of NVML."""

import json
import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from opensora_launch.launch.command import environment
from opensora_launch.machine.choose_gpus import Picked, link_of, owner, pick_gpus
from opensora_launch.machine.find_machine import find_machine
from opensora_launch.machine.host_gpus import GpuFacts, HostGpus, PairFacts
from opensora_launch.plan.plan import Machine
from opensora_launch.schema.config import TopologyConfig
from tests.nvml_stub import build_stub

ROOT = Path(__file__).parents[2]
GIB = 2**30


def gpu(index: int, *processes: tuple[int, int | None], name: str = "NVIDIA L20") -> GpuFacts:
    return GpuFacts(
        index=index, uuid=f"GPU-{index}{index}aa", name=name, total_bytes=48 * GIB, free_bytes=None, capability=(8, 9),
        ecc_errors=None, remap_pending=None, throttled=(), mig=False, processes=processes, power_limit_w=None,
        power_default_w=None, pcie=None,
    )  # fmt: skip


def host(*gpus: GpuFacts, path: str = "PHB") -> HostGpus:
    pairs = [PairFacts(a.index, b.index, path, "ok") for i, a in enumerate(gpus) for b in gpus[i + 1 :]]
    return HostGpus(gpus, tuple(pairs), "580", (13, 0), None)


FOUR = host(gpu(0), gpu(1, (77, 12 * GIB)), gpu(2, (5, 9 * 2**20)), gpu(3, (78, None)))


def picked(found: HostGpus, *asked: str, visible: str | None = None) -> Picked:
    return pick_gpus(found, asked, visible, lambda pid: f"process {pid} (python of kim)")


def taken(found: Picked) -> list[int]:
    return [gpu.index for gpu in found.gpus]


def test_busy_gpus_are_left_out_and_it_is_said_who_uses_them() -> None:
    found = picked(FOUR)
    assert taken(found) == [0, 2]  # a display's 9 MiB do not count
    assert found.lines == (
        "found 2 x NVIDIA L20, 48.0 GiB each; joined: 1 pair by PHB",
        "GPU 1 (NVIDIA L20) is left out: process 77 (python of kim) holds 12.0 GiB",
        "GPU 3 (NVIDIA L20) is left out: process 78 (python of kim) holds memory, it is not known how much",
    )
    assert found.problems == ()


def test_gpus_by_number_and_uuid_also_busy_ones() -> None:
    assert taken(picked(FOUR, "3", "0")) == [3, 0]
    assert taken(picked(FOUR, "GPU-11")) == [1]
    assert taken(picked(FOUR, "GPU-22aa", "1")) == [2, 1]


@pytest.mark.parametrize(
    ("asked", "said"),
    [
        (("7",), "7 names no GPU here; there are: 0 (GPU-00aa), 1 (GPU-11aa)"),
        (("GPU-",), "GPU- names 4 GPUs here"),
        (("1", "GPU-11"), "GPU-11 is named twice"),
        (("x",), "x names no GPU"),
    ],
)
def test_names_that_name_nothing(asked: tuple[str, ...], said: str) -> None:
    assert said in picked(FOUR, *asked).problems[0]


def test_only_what_cuda_would_show() -> None:
    assert taken(picked(FOUR, visible="2,0")) == [2, 0]
    assert (taken(picked(FOUR, visible="1,0,9,2")), picked(FOUR, visible="1,0,9,2").visible) == ([0], 2)
    assert picked(FOUR, "2", visible="0,1").problems == (
        "topology.gpus: 2 names no GPU here; there are: 0 (GPU-00aa), 1 (GPU-11aa)",
    )


def test_a_process_of_unknown_size_does_not_take_the_only_gpu_away() -> None:
    found = picked(host(gpu(0, (78, None)), gpu(1, (77, 12 * GIB), (78, None))))
    assert taken(found) == [0]
    assert found.lines[1:] == (
        "GPU 0 (NVIDIA L20) is taken, although process 78 (python of kim) holds memory, it is not known how much",
        "GPU 1 (NVIDIA L20) is left out: process 77 (python of kim) holds 12.0 GiB, process 78 (python of kim) holds "
        "memory, it is not known how much",
    )


def test_the_hint_is_never_the_setting_in_use() -> None:
    _, (line,) = find_machine(TopologyConfig(), picked(host(gpu(0, (77, 12 * GIB)))))
    assert line.startswith("no GPU is free here; GPU 0 (NVIDIA L20) is left out: process 77")
    assert line.endswith("use topology.gpus=[...] to share a busy GPU, or topology=cpu2 for the CPU")
    _, (line,) = find_machine(TopologyConfig(gpus_per_node=4), picked(host(gpu(0), gpu(1), gpu(2))))
    assert line.endswith("use topology.gpus_per_node=3, or topology=cpu4 for the CPU")


def test_memory_that_is_shared_with_the_host_is_said() -> None:
    found = picked(host(replace(gpu(0, name="NVIDIA GB10"), total_bytes=None, shares_memory=True)))
    assert found.lines == ("found 1 x NVIDIA GB10, memory shared with the host",)


def test_mig_cards_are_not_taken_whole() -> None:
    (line,) = picked(host(replace(gpu(0), mig=True), gpu(1)), "0").problems
    assert line.startswith("topology.gpus: GPU 0 cannot be taken: it is divided into MIG instances")
    found = picked(host(replace(gpu(0), mig=True), gpu(1)))
    assert taken(found) == [1]
    assert "divided into MIG instances" in found.lines[1]


def test_an_instance_that_is_named_is_taken() -> None:
    part = replace(gpu(0, name="NVIDIA H100 80GB HBM3 MIG 1g.10gb"), uuid="MIG-0a", total_bytes=10 * GIB)
    found = picked(HostGpus((replace(gpu(0), mig=True),), instances=(part,)), visible="MIG-0a")
    assert (found.gpus, found.visible) == ((part,), 1)
    assert found.lines == ("found 1 x NVIDIA H100 80GB HBM3 MIG 1g.10gb, 10.0 GiB each",)


def test_links_of_what_is_taken() -> None:
    joined = host(gpu(0), gpu(1), gpu(2), path="NV18")
    assert link_of(joined.gpus, joined.pairs) == "nvlink"
    assert link_of(joined.gpus[:1], joined.pairs) == "auto"
    assert link_of(FOUR.gpus, FOUR.pairs) == "pcie"
    assert picked(joined).lines == ("found 3 x NVIDIA L20, 48.0 GiB each; joined: 3 pairs by NV18",)


def test_an_owner_is_named() -> None:
    assert owner(os.getpid()).startswith(f"process {os.getpid()} (")
    assert owner(2**22 + 1) == f"process {2**22 + 1}"


def machine(*asked: str, gpus_per_node: int | None = None) -> tuple[Machine, list[str]]:
    topology = TopologyConfig(gpus=list(asked), gpus_per_node=gpus_per_node)
    return find_machine(topology, picked(FOUR, *asked))


def test_a_topology_takes_the_free_ones() -> None:
    found, problems = machine()
    assert (found.device, found.gpus_per_node, found.gpus, problems) == ("cuda", 2, ("GPU-00aa", "GPU-22aa"), [])
    env = environment(2, {"CUDA_VISIBLE_DEVICES": "0,1,2,3"}, found.gpus)
    assert env["CUDA_VISIBLE_DEVICES"] == "GPU-00aa,GPU-22aa"
    named, problems = machine("3")
    assert (named.gpus_per_node, named.gpus, problems) == (1, ("GPU-33aa",), [])


def test_too_few_free_ones_are_told_with_who_has_the_others() -> None:
    _, (line,) = machine(gpus_per_node=4)
    assert line.startswith("topology.gpus_per_node=4, but 2 are free here; GPU 1 (NVIDIA L20) is left out")
    assert "topology=2gpu" in line
    _, (line,) = machine("9")
    assert "topology.gpus: 9 names no GPU here" in line


ASK = """
import sys
from opensora_launch.schema.config import TopologyConfig
from opensora_launch.machine.find_machine import find_machine, found_gpus
found = found_gpus(TopologyConfig(), {})
print(find_machine(TopologyConfig(), found)[0].gpus)
print(*found.lines, sep="\\n")
"""


def test_the_same_through_nvidias_own_bindings(tmp_path: Path) -> None:
    env = build_stub(tmp_path, "GPUS=3", "NVLINKS=4", "BUSY")
    done = subprocess.run([sys.executable, "-c", ASK], env=env, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    uuids, found, left_out = done.stdout.splitlines()
    assert uuids == "('GPU-0000-0', 'GPU-0000-1')"
    assert found.startswith("found 2 x ")
    assert found.endswith("joined: 1 pair by NV4")
    assert left_out.startswith("GPU 2 (")
    assert "is left out: process 4242" in left_out


H100 = 'NAME="NVIDIA H100 80GB HBM3"'


def planned(folder: Path, options: tuple[str, ...], *words: str) -> subprocess.CompletedProcess[str]:
    env = build_stub(folder, *options)
    argv = [sys.executable, "-m", "opensora_launch.cli", "plan", "video=256px", *words]
    return subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True)


@pytest.mark.parametrize(("links", "said"), [(4, "NVLink at 117 GB/s"), (0, "PCIe 5 at 37 GB/s")])
def test_plan_takes_the_card_and_the_links_that_are_here(tmp_path: Path, links: int, said: str) -> None:
    done = planned(tmp_path, ("GPUS=2", f"NVLINKS={links}", H100))
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert lines[1].startswith(f"2 x h100_sxm, {said}")
    path = f"NV{links}" if links else "PHB"
    assert f"found 2 x NVIDIA H100 80GB HBM3, 80.0 GiB each; joined: 1 pair by {path}" in lines
    assert "hardware=h100_sxm, found here" in lines


def test_plan_says_which_gpus_it_leaves_out(tmp_path: Path) -> None:
    done = planned(tmp_path, ("GPUS=2", "BUSY", H100))
    assert done.stdout.splitlines()[1].startswith("1 x h100_sxm, 80.0 GiB")
    assert "GPU 1 (NVIDIA H100 80GB HBM3) is left out: process 4242 holds 10.0 GiB" in done.stdout.splitlines()
    as_json = json.loads(planned(tmp_path, ("GPUS=2", "BUSY", H100), "--json").stdout)
    assert "is left out: process 4242" in as_json["found_here"][1]
    both = planned(tmp_path, ("GPUS=2", "BUSY", H100), "topology.gpus=[0,1]")
    assert both.stdout.splitlines()[1].startswith("2 x h100_sxm, PCIe 5")


def test_plan_asks_for_gpus_that_are_not_here(tmp_path: Path) -> None:
    done = planned(tmp_path, ("GPUS=2", H100), "topology.gpus=[7]")
    assert done.returncode == 2
    assert done.stderr.splitlines()[1:] == [
        "  - topology.gpus: 7 names no GPU here; there are: 0 (GPU-0000-0), 1 (GPU-0000-1)"
    ]
    busy = planned(tmp_path, ("GPUS=1", "BUSY", H100))
    assert busy.returncode == 2
    assert "GPU 0 (NVIDIA H100 80GB HBM3) is left out: process 4242 holds 10.0 GiB; which card?" in busy.stderr
    unknown = planned(tmp_path, ("GPUS=1",))
    assert "Stub GPU: not in configs/hardware, so layouts are chosen by rule; which card?" in unknown.stderr


def test_a_named_card_is_another_machines(tmp_path: Path) -> None:
    done = planned(tmp_path, ("GPUS=2", H100), "hardware=h100_sxm", "topology=2gpu")
    assert "2 x h100_sxm, NVLink" in done.stdout
    assert "found" not in done.stdout


def test_a_run_takes_the_links_that_are_here_too(tmp_path: Path) -> None:
    """Over PCIe another layout is fastest than over the NVLink that the catalogue has for the card."""
    words = ["generate", "--prompt", "a", "model=open_sora_v2", "model.init=random", "video=768px", "dry_run=true"]
    chosen = []
    for links in (4, 0):
        env = build_stub(tmp_path, "GPUS=8", f"NVLINKS={links}", H100)
        argv = [sys.executable, "-m", "opensora_launch.cli", *words]
        done = subprocess.run(argv, env=env, cwd=ROOT, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        chosen.append(next(line.split()[3:] for line in done.stdout.splitlines() if "layout, 1 row " in line))
    nvlink, pcie = chosen
    assert nvlink == ["dp1", "cfg1", "ring1", "ulysses8", "tp1"]
    assert int(pcie[2].removeprefix("ring")) > 1
