"""Texts arrive as they are written, where YAML or Hydra would read a number out of them."""

from pathlib import Path

import pytest

from opensora_launch.request.catalogue import read_cards
from opensora_launch.request.compose import compose
from tests.request.test_compose import run_of

WRITTEN = ("0104", "2:00:00", "1_000", "1e3", "10.10", "yes", "true", "+5", "0x10", "7", "nan")


@pytest.mark.parametrize("by", ["--config-dir", "hydra.searchpath=file", "hydra.searchpath"])
def test_a_text_in_a_file_is_read_as_it_is_written(by: str, tmp_path: Path) -> None:
    """YAML would read an account of octal digits, hours of sixty minutes, a boolean."""
    (tmp_path / "launcher").mkdir()
    lab = "kind: slurm\nslurm:\n  cpus_per_rank: 12\n  exclusive: on\n  connect_timeout_s: 1e1\n  array_limit: null\n"
    texts = f"  account: 0104\n  time: 2:00:00\n  modules: [{', '.join(WRITTEN)}]\n"
    (tmp_path / "launcher/lab.yaml").write_text(lab + texts)
    folder = {"hydra.searchpath": f"hydra.searchpath=[{tmp_path}]"}.get(by, f"hydra.searchpath=[file://{tmp_path}]")
    by_dir = by == "--config-dir"
    run = run_of("launcher=lab", *([] if by_dir else [folder]), config_dir=tmp_path if by_dir else None)
    slurm = run.launcher.slurm
    assert (slurm.account, slurm.time, tuple(slurm.modules)) == ("0104", "2:00:00", WRITTEN)
    numbers = (slurm.cpus_per_rank, slurm.exclusive, slurm.connect_timeout_s, slurm.array_limit)
    assert numbers == (12, True, 10.0, None)


@pytest.mark.parametrize("text", WRITTEN)
def test_a_text_on_the_command_line_is_read_as_it_is_written(text: str) -> None:
    assert run_of(f"launcher.slurm.account={text}").launcher.slurm.account == text
    assert run_of(f"++launcher.slurm.account={text}").launcher.slurm.account == text


@pytest.mark.parametrize("text", ["NaN", "3.10", "1:30", "0104", "1_0", "1e3", "true", "7"])
def test_a_text_is_read_as_it_is_written_wherever_it_stands(text: str) -> None:
    own = "+own={part: {name: " + text + "}}"
    run = run_of(f"launcher.slurm.modules=[a, {text} ,{text}]", own, "launcher.slurm.account=${own.part.name}")
    assert (run.launcher.slurm.modules, run.launcher.slurm.account) == (["a", text, text], text)
    part = run_of("launcher.slurm={account: " + text + ", exclusive: true, cpus_per_rank: 1_2}").launcher.slurm
    assert (part.account, part.exclusive, part.cpus_per_rank) == (text, True, 12)
    for swept in (f"{text},b", f"choice({text},b)"):
        points = compose([f"launcher.slurm.account={swept}"], multirun=True).points
        assert [point.run.launcher.slurm.account for point in points] == [text, "b"]
    (point, _) = compose([f"launcher.slurm.modules=[{text}],[b]"], multirun=True).points
    assert point.run.launcher.slurm.modules == [text]


@pytest.mark.parametrize("swept", ["range(1,3)", "sort(2,1)", "1_0,2_0", "choice(1e0,1.0)"])
def test_a_sweep_over_numbers_stays_one(swept: str) -> None:
    points = compose([f"sampling.guidance={swept}", "+own=range(0,2)"], multirun=True).points
    assert len(points) == 4
    assert all(isinstance(point.run.sampling.guidance, float) for point in points)
    assert not any('"' in word for point in points for word in point.swept)


def test_a_card_is_read_as_it_is_written(tmp_path: Path) -> None:
    """By the catalogue as by Hydra."""
    (tmp_path / "hardware").mkdir()
    facts = "memory_gib: 2_4\nbandwidth_gb_s: 1e3\nbf16_tflops: 100\npcie_lanes: 1_6\nnvlink_gb_s: null\n"
    names = f"name: 0104\nnvml_names: [{', '.join(WRITTEN)}]\nform_factor: 1:30\n"
    (tmp_path / "hardware/mine.yaml").write_text(names + facts)
    card = read_cards(tmp_path)["mine"]
    assert card == run_of("hardware=mine", config_dir=tmp_path).hardware
    assert (card.name, tuple(card.nvml_names), card.form_factor) == ("0104", WRITTEN, "1:30")
    assert (card.memory_gib, card.bandwidth_gb_s, card.pcie_lanes, card.nvlink_gb_s) == (24.0, 1000.0, 16, None)


def test_null_and_numbers_stay_what_they_are() -> None:
    run = run_of("launcher.slurm.account=null", "launcher.slurm.connect_timeout_s=1e1", "sampling.num_steps=1_0")
    assert (run.launcher.slurm.account, run.launcher.slurm.connect_timeout_s, run.sampling.num_steps) == (
        None,
        10.0,
        10,
    )
