"""Make the videos of a plan by the real worker, under the double and on the CPU."""

import json
import re
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from opensora_launch.plan.plan import Plan, VideoRequest
from opensora_launch.rundir import RunDir
from tests.fake_cuda.workers import on_cuda, run_workers, waits
from tests.worker.plans import small_plan, video

NO_MEMORY = {"FAKE_CUDA_FREE_GIB": "0"}  # of the GPU, so that T5 is streamed
# What may pin memory by torch, which rounds it up to a power of two: safetensors reads tensors through such memory.
SAFETENSORS = "model/weights.py"
BLENDING = re.compile(r"model/(causal_(vae|conv)\.py|vae\.py:\d+ (fade|blend))")  # what the VAE does for each tile


def make(
    plan: Plan, run_dir: Path, *, fake: bool, attempt: int = 0, **options: Any
) -> tuple[dict[str, bytes], list[dict[str, Any]]]:
    """Make the videos of a plan; the bytes of each file, and the ledger of each rank."""
    folder = run_dir / "attempts" / str(attempt)
    folder.mkdir(parents=True)
    RunDir(run_dir).images.path.mkdir(exist_ok=True)
    for place in (run_dir, folder):
        (place / "plan.json").write_text(json.dumps(asdict(on_cuda(plan) if fake else plan)))
    ledgers = run_workers(plan.machine.ranks, run_dir, ["--attempt", str(folder)], fake=fake, **options)
    return {p.name: p.read_bytes() for p in sorted((run_dir / "samples").glob("[0-9]*_[0-9].[mp]*[4g]"))}, ledgers


def assert_same(got: dict[str, bytes], want: dict[str, bytes]) -> None:
    other = [name for name, data in want.items() if got.get(name) != data]
    assert not other, f"other videos than on the CPU: {other}"


def on_both(plan: Plan, tmp_path: Path, **options: Any) -> list[dict[str, Any]]:
    """Make a plan on the CPU and under the double, and return the ledgers. The videos are equal, and no step waits."""
    want, _ = make(plan, tmp_path / "cpu", fake=False)
    assert len(want) == len(plan.videos), f"only {list(want)} were made"
    got, ledgers = make(plan, tmp_path / "cuda", fake=True, **options)
    assert_same(got, want)
    for rank, ledger in enumerate(ledgers):
        in_steps = waits(ledger, in_step=True)
        assert not in_steps, f"on rank {rank} a step waits for the GPU: {in_steps}"
        in_vae = {place: n for place, n in waits(ledger, in_step=False).items() if BLENDING.match(place)}
        assert not in_vae, f"on rank {rank} the VAE waits for the GPU: {in_vae}"
        elsewhere = {place: n for place, n in ledger["pins"].items() if place.partition(":")[0] != SAFETENSORS}
        assert not elsewhere, f"on rank {rank} torch pins memory, and rounds it up: {elsewhere}"
        assert ledger["cached_pins"] == 0, f"rank {rank} leaves {ledger['cached_pins']} bytes pinned"
    return ledgers


def plan_of(
    ranks: int, videos: Sequence[VideoRequest] = (), precision: str = "bf16", frames: int = 5, **options: Any
) -> Plan:
    """Plan few steps of few frames: one step is like another. No text is remembered from another test."""
    plan = small_plan(ranks, videos or [video(steps=2)], frames=frames, **options)
    images = plan.images and replace(plan.images, precision=precision)
    return replace(plan, precision=precision, text_cache=None, images=images)
