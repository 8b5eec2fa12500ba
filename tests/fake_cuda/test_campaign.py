"""Every item of scripts/gpu_campaign, at tiny size under the double: none dies of a typo on the first GPU."""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT / "scripts"))

from _gpu.items import ITEMS  # noqa: E402
from _gpu.notes import failures  # noqa: E402
from _gpu.refit import refit  # noqa: E402
from _gpu.summary import TABLES, write_summary  # noqa: E402

from tests.nvml_stub import build_stub  # noqa: E402

pytestmark = pytest.mark.fake_cuda

DOUBLE = "-m tests.fake_cuda"
SMI = "#!/bin/sh\necho '20480, 400.0, 1980, 2619, 55, 90'\n"  # what the stub of NVML says too


def rehearse(item: str, out: Path, tmp_path: Path) -> dict[str, Any]:
    """Run an item in a process of its own, on a machine with one GPU, NVML and nvidia-smi; its results."""
    (tmp_path / "nvidia-smi").write_text(SMI)
    (tmp_path / "nvidia-smi").chmod(0o755)
    env = build_stub(tmp_path / "lib", "GPUS=1") if item in ("nvml", "telemetry", "memory") else dict(os.environ)
    env |= {"PATH": f"{tmp_path}:{env['PATH']}", "OMP_NUM_THREADS": "1"}
    words = [item, "--here", "--size", "tiny", "--through", DOUBLE, "--out", str(out)]
    argv = [sys.executable, *DOUBLE.split(), "scripts/gpu_campaign", *words]
    done = subprocess.run(argv, cwd=ROOT, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    found: dict[str, Any] = json.loads((out / f"{item}.json").read_text())
    return found


def of_run(points: dict[str, Any]) -> None:
    assert [p["videos"] for p in points.values()] == [["0000_0.mp4"]] * 2
    assert points["768px"]["tensors_peak_bytes"] == 2**30  # what the double says


def of_memory(points: dict[str, Any]) -> None:
    uses = ["context", "communicators", "products", "attention", "convolutions"]
    assert list(points["set aside"]["outside_bytes"]) == uses
    assert points["set aside"]["usable_share"] == 1.0


def of_attention(points: dict[str, Any]) -> None:
    assert set(points) == {"768px", "256px"}
    for point in points.values():
        assert set(point["kernels"]) == {"cudnn", "sdpa_flash", "sdpa_efficient"}
        assert point["auto"] == "cudnn"
        assert max(kernel["max_abs_error"] for kernel in point["kernels"].values()) < 0.05
        assert "pip install" in point["left_out"]["flash3"]


def of_ceilings(points: dict[str, Any]) -> None:
    assert set(points) == {"products", "memory", "copies"}
    assert len(points["copies"]) == 4 + 3  # both ways, pinned and not; and what every point has


def of_step(points: dict[str, Any]) -> None:
    assert set(points) == {"launch", "kinds", "rows"}
    assert {"attention", "products", "copies"} <= set(points["kinds"]["kinds"])
    assert points["rows"]["finite"]


def of_vae(points: dict[str, Any]) -> None:
    assert set(points) == {"decode", "encode", "layouts"}
    assert len(points["decode"]["tiles"]) == 2 * 3
    assert (points["decode"]["finite"], points["encode"]["finite"]) == (True, True)
    assert points["layouts"]["max_abs_difference"] < 0.1 * points["layouts"]["largest"]


def of_offload(points: dict[str, Any]) -> None:
    assert set(points) == {"24 GB", "16 GB", "shared and offloaded"}
    steps = [step for p in points.values() for step in p.values() if isinstance(step, dict) and "equal_bits" in step]
    assert [step["equal_bits"] for step in steps] == [True] * (2 + 2 + 1)


def of_share(points: dict[str, Any]) -> None:
    layouts = [
        p["layout"] for point in points.values() for p in point.values() if isinstance(p, dict) and "layout" in p
    ]
    assert [layout.replace("dp1 cfg1 ", "").replace(" tp1", "") for layout in layouts] == [
        "ring1 ulysses2", "ring2 ulysses1",
        "ring1 ulysses4", "ring4 ulysses1", "ring2 ulysses2",
        "ring8 ulysses1", "ring2 ulysses4",
    ]  # fmt: skip


def of_load(points: dict[str, Any]) -> None:
    assert points["checkpoint"]["equal"]


def of_nvml(points: dict[str, Any]) -> None:
    assert set(points) == {"idle", "busy", "cost of a reading"}
    for field, values in points["busy"]["fields"].items():
        assert values["nvidia_smi"] == pytest.approx(values["before"]), field


def of_telemetry(points: dict[str, Any]) -> None:
    assert set(points["256px"]["time_with_over_without"]) == {"cpu", "wall"}
    assert points["256px"]["collectives"] == 2 * 5  # two in each block


CHECKS: dict[str, Callable[[dict[str, Any]], None]] = {
    "run": of_run, "memory": of_memory, "attention": of_attention, "ceilings": of_ceilings, "step": of_step,
    "vae": of_vae, "offload": of_offload, "share": of_share, "load": of_load, "nvml": of_nvml,
    "telemetry": of_telemetry,
}  # fmt: skip


@pytest.mark.parametrize("item", ITEMS)
def test_every_item_runs(item: str, tmp_path: Path) -> None:
    out = tmp_path / "results"
    found = rehearse(item, out, tmp_path)
    assert failures(found) == []
    assert found["complete"]
    assert found["machine"]["gpu"] == "Fake GPU"
    assert found["kind"] == ("simulated" if item == "share" else "measured")
    CHECKS[item](found["points"])
    header, cells = TABLES[item](found["points"])
    assert {len(row) for row in cells} == {len(header)}
    assert f"| {item} | {ITEMS[item].about} | done |" in write_summary(out).read_text()
    assert "Fake GPU is not in configs/hardware" in refit(out)
