"""What NVML found is what is planned, in every verb: memory, slot, power limit, and the number of GPUs."""

import os
from dataclasses import replace
from typing import Any

import pytest

from opensora_launch.cli import main
from opensora_launch.machine.choose_gpus import pick_gpus
from opensora_launch.machine.find_machine import NOTHING
from opensora_launch.machine.host_gpus import GpuFacts, HostGpus
from opensora_launch.plan.memory import USABLE
from opensora_launch.plan.times import rates_of
from opensora_launch.request.catalogue import read_cards
from opensora_launch.request.estimation import prepare_estimate, ranked_cards
from opensora_launch.request.final_config import final_config
from opensora_launch.request.flags import GENERATE_FLAGS, parse
from opensora_launch.request.found_card import as_found
from opensora_launch.request.prepare import gpus_of_run
from opensora_launch.schema.cards import Card
from opensora_launch.schema.config import LauncherConfig, LauncherKind, Link, RunConfig, TopologyConfig
from tests.machine.test_choose_gpus import GIB, gpu, host

CARDS = read_cards()
RTX4090, RTX3080 = "NVIDIA GeForce RTX 4090", "NVIDIA GeForce RTX 3080"


def card_here(*gpus: GpuFacts, hardware: Card | None = None, **topology: Any) -> tuple[Card, str]:
    run = RunConfig(hardware=hardware or Card(), topology=TopologyConfig(**topology))
    final = final_config(run, pick_gpus(host(*gpus), (), None, str))
    assert final.problems == ()
    return final.run.hardware, final.note


def sized(name: str, gib: float, index: int = 0) -> GpuFacts:
    return replace(gpu(index, name=name), total_bytes=int(gib * GIB))


@pytest.mark.parametrize(
    ("found", "gib", "note"),
    [
        (sized(RTX4090, 22.5), 22.5, "hardware=rtx4090, found here with 22.5 GiB (catalogue: 24.0)"),
        (sized(RTX4090, 48), 48, "hardware=rtx4090, found here with 48.0 GiB (catalogue: 24.0)"),
        (sized(RTX3080, 12), 12, "hardware=rtx3080, found here with 12.0 GiB (catalogue: 10.0)"),
        (sized(RTX4090, 23.99), 23.99, "hardware=rtx4090, found here"),
        (replace(gpu(0, name=RTX4090), total_bytes=None), 23.99, "hardware=rtx4090, found here"),
    ],
)
def test_the_memory_that_is_here_is_planned(found: GpuFacts, gib: float, note: str) -> None:
    card, said = card_here(found)
    assert card.memory_gib == pytest.approx(gib, abs=0.01)
    assert said == note
    assert replace(card, memory_gib=0) == replace(CARDS[str(card.name)], memory_gib=0)


def test_the_least_of_the_gpus_that_are_taken_counts() -> None:
    pair = sized(RTX4090, 48), sized(RTX4090, 23.99, 1)
    assert card_here(*pair)[0].memory_gib == pytest.approx(23.99, abs=0.01)
    assert card_here(*pair, gpus_per_node=1)[0].memory_gib == 48
    unlike = sized(RTX4090, 24), sized("NVIDIA L20", 45, 1)
    assert [card_here(*unlike, gpus_per_node=n)[0].name for n in (1, 2)] == ["rtx4090", "rtx4090+l20"]


def test_what_others_hold_is_not_planned_with() -> None:
    """The limit is what NVML says is free, where that is less than what CUDA can have of the whole."""
    idle = replace(sized(RTX4090, 24), free_bytes=int(23.65 * GIB))  # the driver's own share is in USABLE
    assert card_here(idle) == (replace(CARDS["rtx4090"], memory_gib=24), "hardware=rtx4090, found here")
    desktop = replace(idle, free_bytes=22 * GIB)
    card, note = card_here(desktop)
    assert card.memory_gib * USABLE == pytest.approx(22)
    assert note == "hardware=rtx4090, found here with 22.3 of 24.0 GiB free"
    assert card_here(idle, replace(desktop, index=1, uuid="GPU-x"))[0].memory_gib * USABLE == pytest.approx(22)
    named, _ = card_here(desktop, hardware=CARDS["rtx4090"])
    assert named.memory_gib * USABLE == pytest.approx(22)
    larger, _ = card_here(desktop, hardware=CARDS["h100_sxm"])
    assert larger.memory_gib * USABLE == pytest.approx(22)
    assert card_here(desktop, hardware=Card(memory_gib=20))[0].memory_gib == 20
    held = replace(desktop, processes=((os.getpid(), 2 * GIB),))  # by this process, which plans for itself
    assert card_here(held)[0].memory_gib == 24


def test_an_unknown_card_has_the_memory_that_is_here() -> None:
    card, note = card_here(sized("NVIDIA X1", 24), replace(sized("NVIDIA X1", 24, 1), free_bytes=20 * GIB))
    assert (card.name, card.known) == (None, False)
    assert card.memory_gib * USABLE == pytest.approx(20)
    assert note == "NVIDIA X1: not in configs/hardware, so layouts are chosen by rule"
    assert card_here(sized("NVIDIA X1", 24), hardware=Card(memory_gib=9))[0].memory_gib == 9


def test_what_the_user_sets_remains() -> None:
    assert card_here(sized(RTX4090, 48), hardware=Card(memory_gib=20))[0].memory_gib == 20
    listed = CARDS["rtx4090"]
    assert card_here(sized(RTX4090, 48), hardware=listed)[0].memory_gib == 48
    assert card_here(sized(RTX4090, 48), hardware=replace(listed, memory_gib=20))[0].memory_gib == 20
    another, _ = card_here(sized(RTX4090, 24), hardware=CARDS["h100_sxm"])
    assert (another.name, another.memory_gib) == ("h100_sxm", 24)  # no more than is here
    assert card_here(sized(RTX4090, 80), hardware=CARDS["l4"])[0] == CARDS["l4"]


def test_mixed_cards_are_added_to_those_that_are_found() -> None:
    """A card that is found counts once."""
    unlike = sized(RTX4090, 22.5), sized("NVIDIA L20", 45, 1)
    whole, _ = card_here(*unlike)
    assert [card.name for card in whole.each] == ["rtx4090+l20", "l20"]
    for more, names in ((["l20"], "rtx4090+l20"), (["rtx4090"], "rtx4090+l20"), (["l4"], "rtx4090+l20+l4")):
        card, _ = card_here(*unlike, hardware=Card(mixed=more))
        assert card.name == names
        assert [other.name for other in card.others] == names.split("+")[1:]
        assert card.memory_gib == pytest.approx(22.5, abs=0.02)
    alone, _ = card_here(sized(RTX4090, 22.5), hardware=Card(mixed=["l20"]))
    assert (alone.name, [card.memory_gib for card in alone.others]) == ("rtx4090+l20", [CARDS["l20"].memory_gib])
    named, _ = card_here(*unlike, hardware=replace(CARDS["rtx4090"], mixed=["l20"]))
    assert named.name == "rtx4090+l20"


def test_slot_and_power_limit_are_planned() -> None:
    found = replace(gpu(0, name=RTX4090), total_bytes=None, pcie=(1, 3, 8, 16), power_limit_w=300.0)
    card, note = card_here(found)
    assert note == (
        "hardware=rtx4090, found here with PCIe 3 x8 (catalogue: PCIe 4), a power limit of 300 W (catalogue: 450)"
    )
    assert (card.pcie_gb_s, card.tdp_w) == (15.75 / 2, 300)
    over_pcie = TopologyConfig(gpus_per_node=2, link=Link.pcie)
    slow, fast = (rates_of(one, over_pcie, "bf16") for one in (card, CARDS["rtx4090"]))
    assert fast.link_bytes == pytest.approx(4 * slow.link_bytes)
    assert fast.host_bytes == pytest.approx(4 * slow.host_bytes)
    wide = replace(found, pcie=(4, 4, 16, 16), power_limit_w=450.0)
    assert as_found(CARDS["rtx4090"], [wide, found]) == replace(card, memory_gib=CARDS["rtx4090"].memory_gib)
    odd = replace(found, pcie=(9, 9, 16, 16))
    assert as_found(CARDS["rtx4090"], [odd]).pcie_text == "PCIe 4"  # a generation that nobody knows yet


@pytest.fixture
def four_gpus(monkeypatch: pytest.MonkeyPatch) -> HostGpus:
    four = host(*(sized(RTX4090, 22.5, n) for n in range(4)))
    monkeypatch.setattr("opensora_launch.machine.find_gpus.find_gpus", lambda: four)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    return four


@pytest.mark.usefixtures("four_gpus")
def test_every_verb_reckons_with_what_is_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", "video=256px"]) == 0
    assert "4 x rtx4090, PCIe 4 at 18 GB/s, 22.5 GiB each" in capsys.readouterr().out
    asked = prepare_estimate(parse("estimate", GENERATE_FLAGS, ["video", "video=256px"]))
    assert asked.run.topology.gpus_per_node == 4
    assert asked.run.hardware.memory_gib == 22.5
    work, found = ranked_cards(prepare_estimate(parse("estimate", GENERATE_FLAGS, ["card", "video=256px"])))
    assert (work.ranks, {one.gpus for one in found}) == (4, {4})
    assert work.topology.link is Link.auto  # other cards have links of their own
    made = ["generate", "--prompt", "x", "model=open_sora_v2", "model.init=random", "video=768px", "dry_run=true"]
    assert main([*made, "fit=strict", "layout.tp=1"]) == 2
    assert "of 22.2 GiB on rtx4090" in capsys.readouterr().err  # 98.5% can be used
    assert main(["doctor", "--quick", *made[3:6], "fit=strict", "layout.tp=1"]) == 1
    assert "of 22.2 GiB on rtx4090" in capsys.readouterr().out


@pytest.mark.usefixtures("four_gpus")
def test_a_batch_job_has_nothing_of_this_host() -> None:
    job = RunConfig(launcher=LauncherConfig(kind=LauncherKind.slurm))
    assert gpus_of_run(job) == NOTHING
    assert len(gpus_of_run(RunConfig()).gpus) == 4


@pytest.mark.usefixtures("four_gpus")
def test_a_step_has_the_gpus_of_this_host_if_that_is_a_node(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in {"JOB_ID": "7", "JOB_CPUS_PER_NODE": "8(x2)", "JOB_NUM_NODES": "2", "JOB_GPUS": "0"}.items():
        monkeypatch.setenv(f"SLURM_{name}", value)
    step = RunConfig(launcher=LauncherConfig(kind=LauncherKind.srun))
    words = ["generate", "--prompt", "x", "model=tiny", "launcher=srun", "topology=2x8", "dry_run=true"]
    note = "launcher=srun: this host is no node of the allocation"
    assert gpus_of_run(step) == NOTHING
    assert main(words) == 0
    assert note in capsys.readouterr().err
    assert main([*words, "hardware=l4"]) == 0
    assert note not in capsys.readouterr().err
    monkeypatch.setenv("SLURMD_NODENAME", "n1")
    assert len(gpus_of_run(step).gpus) == 4
    assert main(words) == 0
    assert note not in capsys.readouterr().err
