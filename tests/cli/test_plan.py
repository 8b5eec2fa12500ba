"""`opensora-launch plan`: the table, JSON, pictures, and what it refuses."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from opensora_launch.cli import main
from opensora_launch.cli.hardware import catalogue, match, settle_hardware
from opensora_launch.config import HardwareConfig, RunConfig
from opensora_launch.errors import UserError

ROOT = Path(__file__).parents[2]
H100 = ["plan", "video=768px", "topology=8gpu", "hardware=h100_sxm"]


def asked(capsys: pytest.CaptureFixture[str], *words: str) -> tuple[int, str, str]:
    code = main(list(words))
    shown = capsys.readouterr()
    return code, shown.out, shown.err


def test_the_table(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = asked(capsys, *H100)
    lines = out.splitlines()
    assert code == 0
    assert lines[0] == "open_sora_v2: 1024 x 576 pixels, 129 frames, 76,544 tokens; 1 video"
    assert lines[1].startswith("8 x h100_sxm, NVLink at 124 GB/s, 79.7 GiB each; replicated weights")
    for name in ("30 steps of 2 rows", "20 steps of 1 row", "total", "compute", "ulysses", "effic.", "GiB/GPU"):
        assert name in lines[3]
    assert lines[4].startswith("*")
    assert lines[4].endswith("chosen")
    assert all("x: " in line or "as fast" in line for line in lines[5:11])


def test_json_has_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = asked(capsys, *H100, "layout.cfg=2", "--json")
    found = json.loads(out)
    assert code == 0
    assert found["steps"] == [{"rows": 1, "count": 20}, {"rows": 2, "count": 30}]
    assert [option["chosen"] for option in found["options"]] == [True] + [False] * (len(found["options"]) - 1)
    for option in found["options"]:
        assert option["layouts"]["2"]["cfg"] == 2
        seconds = option["seconds"]
        parts = ("compute", "ulysses", "ring", "tensor", "gather", "launch", "vae", "save")
        assert sum(seconds[part] for part in parts) == pytest.approx(seconds["making"])
        assert option["memory_bytes"]["peak"] <= option["memory_bytes"]["limit"]


def test_what_fits_nowhere_ends_with_1(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["plan", "video=768px", "topology=1gpu", "hardware=rtx4090"]
    code, out, _ = asked(capsys, *words, "fit=strict")
    assert code == 1
    assert (
        "nothing fits: replicated weights: VAE needs 31.4 of 23.6 GiB on rtx4090; placement.offload=host fits in" in out
    )
    code, out, _ = asked(capsys, *words)
    assert code == 0
    assert "24.0 GiB each; weights in host memory, " in out
    assert "\nnot replicated weights: VAE needs 31.4 of 23.6 GiB\n" in out


def test_generate_refuses_what_does_not_fit(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "--prompt", "a", "model=open_sora_v2", "model.init=random", "video=768px", "topology=8gpu"]
    code, _, err = asked(capsys, *words, "hardware=rtx4090", "fit=strict", "dry_run=true")
    assert code == 2
    assert "placement.shard=node fits in 11.9 GiB" in err
    code, out, _ = asked(capsys, *words, "hardware=rtx4090", "dry_run=true")
    assert code == 0
    assert "weights spread over a node" in out


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["topology=8gpu"], "which card? give hardware=CARD, one of a100_40gb_pcie"),
        (["topology=cpu2", "hardware=l20"], "plan predicts GPUs"),
        (["hardware=l20", "topology=2gpu", "hardware.mixed=[l4o]"], "l4o is not a card of configs/hardware; did you"),
        (["hardware=l20", "topology=2gpu", "--videos", "0"], "--videos 0 must be a whole number"),
        (["hardware=l20", "topology=2gpu", "video.num_frames=128"], "the nearest is 129"),
        (["hardware=l20", "topology=2gpu", "layout.cfg=3"], "layout.cfg=3 needs 3 ranks"),
        (["hardware=h1000"], "h1000"),
    ],
)
def test_mistakes_are_told(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    code, _, err = asked(capsys, "plan", *words)
    assert code == 2
    assert said in err


def test_mixed_cards(capsys: pytest.CaptureFixture[str]) -> None:
    code, out, _ = asked(capsys, "plan", "hardware=l20", "topology=2gpu", "hardware.mixed=[a100_80gb_pcie]")
    assert code == 0
    assert "2 x l20+a100_80gb_pcie, PCIe 4" in out
    assert "45.0 GiB each" in out


def test_a_picture(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("matplotlib")
    file = tmp_path / "plan.png"
    assert asked(capsys, *H100, "--plot", str(file))[0] == 0
    assert file.read_bytes()[:4] == b"\x89PNG"


def test_a_picture_without_matplotlib(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    code, _, err = asked(capsys, *H100, "--plot", str(tmp_path / "plan.png"))
    assert code == 2
    assert "--plot needs matplotlib: pip install 'opensora-launch[figures]'" in err


def cpu_seconds(words: list[str]) -> float:
    """Of one command in a process of its own, the best of three; it must not have imported what is slow."""
    code = (
        "import sys\nfrom opensora_launch.cli import main\n"
        f"assert main({words!r}) == 0\n"
        "sys.exit(str(sorted({'torch', 'numpy', 'diffusers', 'matplotlib'} & set(sys.modules))))"
    )
    best = 9.0
    for _ in range(3):
        started = os.times()
        done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
        ended = os.times()
        used = ended.children_user + ended.children_system - started.children_user - started.children_system
        best = min(best, used)
        assert done.stderr.splitlines()[-1] == "[]"
    return best


def test_quick_and_without_torch() -> None:
    """0.4 s on an idle core; here beside Hydra's own part of it, since the machine may be busy."""
    hydra = cpu_seconds(["generate", "--cfg", "job", *H100[1:], "model=open_sora_v2"])
    assert cpu_seconds(H100) < hydra + 0.15


def test_cards_by_the_drivers_names() -> None:
    cards = catalogue()
    found = {name: getattr(match(name, cards), "name", None) for name in (
        "NVIDIA H100 80GB HBM3", "NVIDIA H100 PCIe", "NVIDIA A100-SXM4-80GB", "NVIDIA GeForce RTX 4090", "NVIDIA L40S",
        "NVIDIA L4", "NVIDIA L40", "NVIDIA RTX 6000 Ada Generation", "Tesla V100-SXM2-32GB", "NVIDIA H200",
        "NVIDIA GeForce RTX 4090 Laptop GPU", "NVIDIA T4",
    )}  # fmt: skip
    assert list(found.values()) == [
        "h100_sxm", "h100_pcie", "a100_80gb_sxm", "rtx4090", "l40s", "l4", "l40", "rtx6000_ada", "v100", "h200",
        None, None,
    ]  # fmt: skip


def test_a_found_card_is_looked_up() -> None:
    run = RunConfig()
    assert settle_hardware(run, ["NVIDIA L20", "NVIDIA L20"]) == "hardware=l20, found here"
    assert (run.hardware.name, run.hardware.memory_gib) == ("l20", 44.99)
    mixed = RunConfig()
    settle_hardware(mixed, ["NVIDIA L20", "NVIDIA H100 PCIe"])
    assert mixed.hardware.name == "l20+h100_pcie"
    unknown = RunConfig()
    assert "NVIDIA T4: not in configs/hardware" in settle_hardware(unknown, ["NVIDIA T4"])
    assert not unknown.hardware.known
    named = RunConfig(hardware=HardwareConfig(name="mine", memory_gib=8, mixed=["no"]))
    with pytest.raises(UserError, match="no is not a card"):
        settle_hardware(named, [])


def test_every_card_is_whole() -> None:
    for name, card in catalogue().items():
        file = (ROOT / "configs" / "hardware" / f"{name}.yaml").read_text()
        assert card.name == name
        assert file.startswith("# ")
        assert "\n# Source: " in file
        assert card.nvml_names
        assert card.half_tflops > 0
        assert card.memory_gib > 0
        assert (card.nvlink_gb_s is None) == (card.nvlink_gpus == 1)
        assert card.fp8_tflops is None or card.fp8_tflops == pytest.approx(2 * card.half_tflops, rel=0.02)
