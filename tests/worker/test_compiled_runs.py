"""compile=on end to end, on real ranks of the command line: the reference's cases, and a run with its report."""

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

import pytest
import torch

from opensora_launch.rundir import RunDir
from opensora_launch.schema.kernel_kinds import Compile
from opensora_launch.worker.compiled_parts import why_not_compiled

ROOT = Path(__file__).parents[2]
CASES = ROOT / "tests" / "reference"
KINDS = ("mmdit_tiny_*.json", "lora_tiny_case.json", "sampling_*.json", "t2i2v.json")
ALL = sorted(path.name for kind in KINDS for path in CASES.glob(kind))
SOME = ("mmdit_tiny_flux.json", "sampling_i2v_head.json", "sampling_t2v_batch2.json")


@pytest.fixture(autouse=True)
def compiler() -> None:
    if lacking := why_not_compiled(torch.device("cpu")):
        pytest.skip(f"this machine {lacking}")


def command(folder: Path, *words: str) -> str:
    """The output of a command that succeeds. Its ranks have no type checks, which cannot be compiled."""
    argv = [sys.executable, "-m", "opensora_launch.cli", *words]
    env = os.environ | {"OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    done = subprocess.run(argv, capture_output=True, text=True, cwd=folder, env=env)
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def verified(folder: Path, names: Sequence[str], *words: str) -> list[str]:
    flags = [word for name in names for word in ("--case", str(CASES / name))]
    return [
        line
        for line in command(folder, "verify", *flags, "compile=on", *words).splitlines()
        if line.startswith("case=")
    ]


@pytest.mark.slow
def test_every_case_on_one_rank(tmp_path: Path) -> None:
    lines = verified(tmp_path, ALL, "topology=cpu1")
    assert {line.split()[0].removeprefix("case=") for line in lines} == {name.removesuffix(".json") for name in ALL}
    assert all(line.endswith("ok=true") for line in lines)


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["layout.ulysses=2", "layout.ring=2", "layout.cfg=2"])
def test_cases_on_two_ranks(layout: str, tmp_path: Path) -> None:
    """Ulysses overlaps. The comparison on one rank is eager."""
    lines = verified(tmp_path, SOME, "topology=cpu2", "overlap=on", layout)
    assert len(lines) == 5
    assert all(line.endswith("ok=true") for line in lines)


@pytest.mark.slow
def test_a_run_says_that_it_compiled_and_a_resumed_one_compiles_too(tmp_path: Path) -> None:
    words = ("model=demo", "topology=cpu2", "sampling.num_steps=2", "runs_dir=runs")
    command(tmp_path, "generate", "--prompt", "a", *words, "compile=on", "--output", "run")
    run = RunDir(tmp_path / "run")
    report = json.loads((run.path / "report.json").read_text())
    assert all(rank["parts"]["compile"] > 0 for rank in report["attempts"][0]["ranks"])
    video, record = run.samples / "0000_0.mp4", run.samples / "0000_0.json"
    assert json.loads(record.read_text())["compiled"] is True
    first = video.read_bytes()
    for path in (video, record):
        path.unlink()
    command(tmp_path, "generate", "--resume", "run")
    assert video.read_bytes() == first
    plans = [json.loads((run.path / "attempts" / k / "plan.json").read_text())["compile"] for k in ("0", "1")]
    assert plans == [Compile.on, Compile.on]
