"""The commands in examples/ plan what they say, on a machine without a GPU or a checkpoint."""

import re
import shlex
from pathlib import Path

import pytest

from opensora_launch.cli import main

EXAMPLES = Path(__file__).parent.parent.parent / "examples"
SITES = sorted((EXAMPLES / "site").glob("*.yaml"))
COMMAND = re.compile(r"opensora-launch ((?:plan|generate) --config-dir examples [^`\n]+)")
# What each example is for, in the words of `plan` and of `generate ... dry_run=true`.
PLANNED = {
    "rtx4090_pair": ("336 x 192 pixels", "2 x rtx4090, PCIe 4", "weights spread over a node"),
    "h100x8": ("1024 x 576 pixels", "8 x h100_sxm, NVLink", "replicated weights"),
    "slurm": ("1024 x 576 pixels", "16 x h100_sxm on 2 nodes, NVLink", "replicated weights"),
}
STARTED = {
    "rtx4090_pair": ("model open_sora_v2", "ranks 2 (GPUs)", "--nproc-per-node 2"),
    "h100x8": ("model open_sora_v2", "ranks 8 (GPUs)", "--nproc-per-node 8"),
    "slurm": (
        "ranks 16 (GPUs on 2 nodes)",
        "#SBATCH --account=vision",
        "#SBATCH --cpus-per-task=12",
        "module load cuda",
    ),
}


def commands(text: str) -> list[list[str]]:
    return [
        shlex.split(found.replace("--config-dir examples", f"--config-dir {EXAMPLES}"))
        for found in COMMAND.findall(text)
    ]


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setenv("PATH", "")  # the batch script is shown, and no sbatch is asked

    def run(argv: list[str]) -> str:
        assert main(argv) == 0
        return " ".join(capsys.readouterr().out.split())

    return run


@pytest.mark.parametrize("site", SITES, ids=lambda path: path.stem)
def test_the_commands_in_an_example_work(run, empty_folder: Path, site: Path) -> None:
    plan, generate = commands(site.read_text())
    assert [word for word in PLANNED[site.stem] if word not in run(plan)] == []
    out = run([*generate, "dry_run=true"])
    assert [word for word in STARTED[site.stem] if word not in out] == []
    assert list(empty_folder.iterdir()) == []


@pytest.mark.parametrize("site", SITES, ids=lambda path: path.stem)
def test_the_command_line_overrides_an_example(run, site: Path) -> None:
    plan, _ = commands(site.read_text())
    out = run([*plan, "video=custom", "video.width_px=512", "video.height_px=320"])
    assert "512 x 320 pixels" in out


def test_the_list_of_examples_has_the_same_commands() -> None:
    listed = commands((EXAMPLES / "README.md").read_text())
    assert sorted(listed) == sorted(commands(site.read_text())[0] for site in SITES)
