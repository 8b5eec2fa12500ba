"""`launcher=slurm` on a host without Slurm: the script in a dry run, its predicted limits, and what is refused."""

import re
from pathlib import Path

import pytest

from opensora_launch.cli import main
from opensora_launch.slurm import query as slurm_query

WORDS = ("generate", "--prompt", "x", "topology=2x8", "launcher=slurm", "video=768px", "model=open_sora_v2")


@pytest.fixture(autouse=True)
def no_slurm(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))


def options(capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, str]:
    assert main([*WORDS, *more, "dry_run=true"]) == 0
    found = re.findall(r"^#SBATCH --([\w-]+)=?(.*)$", capsys.readouterr().out, re.MULTILINE)
    return dict(found)


def test_a_dry_run_shows_the_script(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    asked = options(capsys, "launcher.slurm.partition=h100", "launcher.slurm.gpus=gres", "launcher.slurm.gpu_type=h100")
    assert (asked["nodes"], asked["ntasks-per-node"], asked["partition"]) == ("2", "8", "h100")
    assert asked["gres"] == "gpu:h100:8"
    assert "time" not in asked
    assert list(tmp_path.iterdir()) == []


def test_time_and_memory_are_the_predictions_where_the_card_is_known(capsys: pytest.CaptureFixture[str]) -> None:
    asked = options(capsys, "hardware=h100_sxm")
    assert 15 < int(asked["time"]) < 60
    assert 64 <= int(asked["mem"].removesuffix("G")) < 1000
    many = options(capsys, "hardware=h100_sxm", "sampling.num_samples=100", "launcher.slurm.mem=0")
    assert int(many["time"]) > 2 * int(asked["time"])
    assert many["mem"] == "0"


def test_what_is_refused_is_said_at_once(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    words = ("launcher.slurm.array=0", "launcher.slurm.container=pyxis", "topology.gpus_per_node=null")
    assert main(["generate", "--prompt", "x", "model=tiny", "launcher=slurm", *words]) == 2
    said = capsys.readouterr().err
    for line in ("array=0 must be at least 1", "needs launcher.slurm.image", "needs the number of ranks per node"):
        assert line in said
    assert slurm_query.no_sbatch()[0] in said
    assert list(tmp_path.iterdir()) == []


def test_a_wrong_key_names_the_right_ones(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*WORDS, "launcher.slurm.partitoin=x"]) == 2
    said = capsys.readouterr().err
    assert "did you mean launcher.slurm.partition?" in said
    assert "the keys of launcher.slurm are job_name, partition, account" in said
