"""The real worker on tensors that say they are on CUDA makes the same bits as on the CPU, and no step waits."""

import json
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import pytest

from opensora_launch import exit_codes
from opensora_launch.plan.plan import Machine
from opensora_launch.plan.verify_spec import VerifySpec
from opensora_launch.schema.config import LayoutConfig, Offload, PlacementConfig, Shard, Storage
from tests.fake_cuda.making import assert_same, make, on_both, plan_of
from tests.fake_cuda.workers import run_workers, waits
from tests.media.clips import noise, write_clip
from tests.worker.plans import video
from tests.worker.test_first_frames import TINY_IMAGE
from tests.worker.test_fp8_runs import DEEP, ON

pytestmark = pytest.mark.fake_cuda

REFERENCE = Path(__file__).parent.parent / "reference"
BOTH = [video(steps=2), video("0001_0", seed=7, steps=2)]


@pytest.mark.parametrize("precision", ["bf16", "fp32"])
def test_one_gpu(precision, tmp_path):
    (ledger,) = on_both(plan_of(1, precision=precision), tmp_path)
    kernel = {"bf16": "_scaled_dot_product_cudnn_attention", "fp32": "_scaled_dot_product_efficient_attention"}
    assert set(ledger["kernels"]) == {kernel[precision]}


LAYOUTS = {
    "ulysses2": LayoutConfig(dp=1, cfg=1, ulysses=2),
    "ring2": LayoutConfig(dp=1, cfg=1, ring=2),
    "cfg2": LayoutConfig(dp=1, cfg=2),
    "tp2": LayoutConfig(dp=1, cfg=1, tp=2),
    "dp2": LayoutConfig(dp=2),
}


@pytest.mark.parametrize("name", LAYOUTS)
def test_two_gpus(name, tmp_path):
    """The tiles of the VAE are spread, too."""
    ledgers = on_both(plan_of(2, BOTH, layout=LAYOUTS[name]), tmp_path)
    assert all(ledger["collectives"] for ledger in ledgers) == (name != "dp2")


def test_four_gpus(tmp_path):
    """Two videos in a batch on a hybrid layout."""
    layout = LayoutConfig(dp=1, cfg=2, ulysses=2)
    on_both(plan_of(4, BOTH, layout=layout, batch_size=2, frames=1), tmp_path)


PLACEMENTS = {
    "sharded": PlacementConfig(Shard.node, Offload.none),
    "offloaded": PlacementConfig(Shard.none, Offload.host, resident_blocks=1),
    "both": PlacementConfig(Shard.node, Offload.host),
    "fp8": PlacementConfig(Shard.none, Offload.host, storage=Storage.fp8),
}


@pytest.mark.parametrize("name", PLACEMENTS)
def test_placements(name, tmp_path):
    """What waits in host memory is pinned, so that no copy makes the host wait."""
    ledgers = on_both(plan_of(2, layout=LayoutConfig(dp=1), placement=PLACEMENTS[name]), tmp_path)
    assert all(ledger["registered_in_all"] > 0 for ledger in ledgers) == (name != "sharded")


def test_products_in_fp8(tmp_path):
    """torch multiplies them, after a trial on each rank; weights come from host memory."""
    plan = plan_of(1, placement=PlacementConfig(Shard.none, Offload.host), model=DEEP)
    (ledger,) = on_both(replace(plan, numerics=ON), tmp_path)
    assert ledger["kernels"]["_scaled_mm"] > 0


def test_conditions(tmp_path):
    """References are encoded in tiles on two ranks, and given frames are put back."""
    clip = str(write_clip(tmp_path / "a clip.mkv", noise(40, 48, 80, 3)))
    videos = [video("0000_0", steps=2, refs=[clip], cond="i2v_head"), video("0001_0", 3, 2, [clip], "v2v_tail")]
    on_both(plan_of(2, videos, layout=LayoutConfig(dp=1), frames=37), tmp_path)


def stop_after_the_first_step() -> None:
    from opensora_launch.worker.checkpoint import Checkpoints

    after_step = Checkpoints.after_step

    def stopping(self: Checkpoints, *step: Any) -> None:
        self.stop_file.touch()
        after_step(self, *step)

    Checkpoints.after_step = stopping  # type: ignore[method-assign,assignment]


def test_a_stopped_run_goes_on(tmp_path):
    """Latents leave the GPU only when a step is stored."""
    plan = replace(plan_of(2, layout=LayoutConfig(dp=1), frames=1), checkpoint_every_steps=1)
    want, _ = make(plan, tmp_path / "cpu", fake=False)
    stopped, asked = exit_codes.PREEMPTED, stop_after_the_first_step
    assert make(plan, tmp_path / "cuda", fake=True, prepare=asked, expected=stopped) == ({}, [])
    got, ledgers = make(plan, tmp_path / "cuda", fake=True, attempt=1)
    assert_same(got, want)
    writes = [[place.split()[1] for place in waits(ledger, in_step=True)] for ledger in ledgers]
    assert writes == [["_write:"], []], "the first rank stores the latents"


def test_verify(tmp_path):
    cases = tuple(str(REFERENCE / f"{name}.json") for name in ("mmdit_tiny_i2v", "vae_tiny", "sampling_i2v_loop"))
    spec = VerifySpec(Machine("cuda", 1, 2, 2), LayoutConfig(ring=2), "auto", 1, 60.0, cases)
    (tmp_path / "verify.json").write_text(json.dumps(asdict(spec)))
    run_workers(2, tmp_path, ["--verify", str(tmp_path)], fake=True)
    lines = [json.loads(line) for line in (tmp_path / "verify.jsonl").read_text().splitlines()]
    assert {Path(case).stem for case in cases} == {line["case"] for line in lines}
    assert [line for line in lines if not line["ok"]] == []


def test_previews(tmp_path):
    """Only the first rank looks at its latents between steps."""
    plan = replace(plan_of(2, layout=LayoutConfig(dp=1), frames=1), preview_every_steps=1)
    want, _ = make(plan, tmp_path / "cpu", fake=False)
    got, ledgers = make(plan, tmp_path / "cuda", fake=True)
    assert_same(got, want)
    shown = [sorted(path.name for path in (tmp_path / which).glob("previews/*/*")) for which in ("cpu", "cuda")]
    assert shown[0] == shown[1]
    assert shown[0][0] == "step0001.png"
    assert [{place.split()[1] for place in waits(ledger, in_step=True)} for ledger in ledgers] == [
        {"to_frames:"},
        set(),
    ]


def test_first_frames(tmp_path):
    """Two images by two GPUs, then a video from each."""
    videos = [replace(v, cond_type="i2v_head", image=True) for v in BOTH]
    on_both(plan_of(2, videos, layout=LayoutConfig(dp=1, ulysses=2), image=TINY_IMAGE), tmp_path)
    for where in ("cpu", "cuda"):
        assert len(list((tmp_path / where / "images" / "samples").glob("*.png"))) == 2
