"""`verify` holds for the reference's cases, and fails where it should."""

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from opensora_launch.errors import UserError
from opensora_launch.plan.plan import Machine
from opensora_launch.plan.verify_spec import VerifySpec
from opensora_launch.rundir import AttemptDir
from opensora_launch.schema.config import LayoutConfig
from opensora_launch.telemetry.heartbeat import Heartbeat
from opensora_launch.worker.case_files import read_case
from opensora_launch.worker.rank import Rank
from opensora_launch.worker.verify import run_verify
from tests.ranks import run_ranks
from tests.worker.plans import small_plan, video

REFERENCE = Path(__file__).parent.parent / "reference"
CASES = sorted(
    p
    for p in REFERENCE.glob("*.json")
    if p.stem.startswith(("mmdit", "lora", "sampling", "vae", "dcae", "ae2d", "t2i2v"))
)


def on_rank(spec: VerifySpec, attempt: str) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    beat = Heartbeat(Path(attempt) / "heartbeat" / f"rank{rank}.json", rank=rank, host=socket.gethostname())
    run_verify(spec, AttemptDir(Path(attempt)), Rank(rank, rank, world, world), beat)


def verify(ranks: int, layout: LayoutConfig, cases: list[Path], tmp_path: Path, **more: Any) -> list[dict]:
    spec = VerifySpec(Machine("cpu", 1, ranks, 2), layout, "auto", 1, 60.0, tuple(str(c) for c in cases), **more)
    run_ranks(ranks, tmp_path, on_rank, spec, str(tmp_path), timeout=400.0)
    return [json.loads(line) for line in (tmp_path / "verify.jsonl").read_text().splitlines()]


def test_a_case_of_each_kind_holds(tmp_path):
    cases = [c for c in CASES if c.stem in ("mmdit_tiny_i2v", "ae2d_tiny", "sampling_i2v_loop")]
    lines = verify(2, LayoutConfig(ring=2), cases, tmp_path)
    assert {line["case"] for line in lines} == {c.stem for c in cases}
    assert [line for line in lines if not line["ok"]] == []


@pytest.mark.slow
@pytest.mark.parametrize(
    ("ranks", "layout"),
    [(3, LayoutConfig(ring=3)), (4, LayoutConfig(cfg=2, ulysses=2))],
    ids=["ring 3", "cfg 2 x ulysses 2"],
)
def test_every_reference_case_holds(ranks, layout, tmp_path):
    """One rank is among what is compared: each line holds against the stored tensor and against one rank's."""
    lines = verify(ranks, layout, CASES, tmp_path)
    assert {line["case"] for line in lines} == {c.stem for c in CASES}
    assert len(lines) == sum(len(json.loads(c.read_text())["compare"]) for c in CASES)
    assert [line for line in lines if not line["ok"]] == []


def altered(tmp_path: Path, name: str, tensor: str, value: float) -> Path:
    """A copy of a case with one element of one tensor changed."""
    case = json.loads((REFERENCE / f"{name}.json").read_text())
    tensors = load_file(REFERENCE / case["file"])
    tensors[tensor].view(-1)[5] += value
    save_file(tensors, tmp_path / case["file"])
    for file in {case["weights"]["file"], case["vae"]["file"]} - {case["file"]}:
        shutil.copy(REFERENCE / file, tmp_path / file)
    path = tmp_path / f"{name}.json"
    path.write_text(json.dumps(case))
    return path


@pytest.mark.parametrize("value", [0.1, float("nan")])
def test_one_wrong_element_is_found(value, tmp_path):
    lines = verify(1, LayoutConfig(), [altered(tmp_path, "sampling_t2v_batch2", "final_packed", value)], tmp_path)
    assert {line["tensor"]: line["ok"] for line in lines} == {"final_packed": False, "video": True}


def test_another_noise_is_found(tmp_path):
    path = altered(tmp_path, "sampling_t2v_batch2", "final_packed", 0.0)
    case = json.loads(path.read_text())
    case["sampling_option"]["seed"] += 1
    path.write_text(json.dumps(case))
    with pytest.raises(AssertionError, match="the noise of sampling_t2v_batch2 is not the stored one"):
        verify(1, LayoutConfig(), [path], tmp_path)


def test_the_current_model_without_a_case(tmp_path):
    plan = small_plan(2, [video()], layout=LayoutConfig(dp=1))
    lines = verify(2, LayoutConfig(), [], tmp_path, plan=plan)
    assert [(line["tensor"], line["ok"], line["max_abs_stored"]) for line in lines] == [
        ("0000_0.latent", True, None),
        ("0000_0.video", True, None),
    ]
    assert 0 < lines[0]["max_abs_one_rank"] < 1e-3


def without(part: str, key: str) -> Callable[[dict[str, Any]], object]:
    return lambda case: (case[part] if part else case).pop(key)


@pytest.mark.parametrize(
    ("name", "change", "said"),
    [
        (
            "vae_tiny",
            lambda case: case["vae"]["config"].update(scale_factor=0.4),
            "`scale_factor` belongs into `vae`, n",
        ),
        (
            "sampling_t2v",
            lambda case: case["vae"]["config"].update(shift_factor=0),
            "`shift_factor` belongs into `vae`",
        ),
        ("mmdit_tiny_t2v", lambda case: case["config"].update(depht=2), "the model config has unknown names:\n.*depht"),
        ("mmdit_tiny_t2v", without("", "weights"), "it has no `weights`"),
        ("vae_tiny", without("vae", "tiles"), "`vae` has no `tiles`"),
        ("sampling_t2v", without("sampling_option", "seed"), "`sampling_option` has no `seed`"),
        ("sampling_t2v", lambda case: case.update(weights="a"), "`weights` is not an object"),
        ("sampling_t2v", without("", "compare"), "it has no `compare`"),
    ],
)
def test_a_key_too_many_or_too_few_is_one_line(
    name: str, change: Callable[[dict[str, Any]], object], said: str, tmp_path: Path
) -> None:
    case = json.loads((REFERENCE / f"{name}.json").read_text())
    case["file"] = str(REFERENCE / case["file"])
    change(case)
    (tmp_path / "bad.json").write_text(json.dumps(case))
    with pytest.raises(UserError, match=said):
        _ = read_case(tmp_path / "bad.json", torch.device("cpu")).mmdit


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "is not a case"),
        ('{"file": "none.safetensors", "kind": "mmdit"}', "cannot be read"),
        (
            '{"file": "mmdit_tiny_t2v.safetensors", "kind": "audio", "compare": {}}',
            "the known kinds are mmdit, vae, dcae, ae2d, sampling",
        ),
        (
            '{"file": "mmdit_tiny_t2v.safetensors", "kind": "mmdit", "compare": {"video": {}}, '
            '"config": {}, "weights": {"file": "", "prefix": ""}}',
            "lacks tensors that bad.json compares",
        ),
    ],
)
def test_a_bad_case_is_one_line(text, said, tmp_path):
    shutil.copy(REFERENCE / "mmdit_tiny_t2v.safetensors", tmp_path)
    (tmp_path / "bad.json").write_text(text)
    with pytest.raises(UserError, match=said):
        read_case(tmp_path / "bad.json", torch.device("cpu"))
