"""The image stage: all first frames are made before the videos, once, on any ranks; then its model is gone."""

import gc
import json
import weakref
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file

from opensora_launch.plan.placement import Placement
from opensora_launch.plan.plan import Plan, VideoRequest
from opensora_launch.report.build import build_report
from opensora_launch.rundir import AttemptDir, RunDir
from opensora_launch.runs.finished_videos import failed_videos, record_failed
from opensora_launch.schema.autoencoder import VaeConfig, VaeKind
from opensora_launch.schema.config import ImageConfig, Init, LayoutConfig, MmditConfig, ModelConfig, Shard
from opensora_launch.telemetry.events import IMAGE, RankEvents, read_events
from opensora_launch.worker import load_networks
from opensora_launch.worker import run as run_module
from tests.ranks import run_ranks
from tests.worker.plans import TINY, small_plan, video
from tests.worker.test_generate import make, on_rank, prepare

TINY_IMAGE = ImageConfig(
    resolution="96px",
    num_steps=3,
    model=ModelConfig(
        name="tiny_image",
        init=Init.random,
        mmdit=MmditConfig(
            in_channels=16, vec_in_dim=24, context_in_dim=32, hidden_size=32, num_heads=2, depth=1,
            depth_single_blocks=1, axes_dim=[4, 6, 6], guidance_embed=True, fused_qkv=True, use_liger_rope=False,
            cond_embed=False,
        ),
        vae=VaeConfig(
            VaeKind.image, latent_channels=4, layers_per_block=1, norm_num_groups=4, block_out_channels=[8, 8, 8, 8]
        ),
    ),
)  # fmt: skip


def made_video(name: str, seed: int) -> VideoRequest:
    return replace(video(name, seed=seed, steps=4, cond="i2v_head"), image=True)


VIDEOS = [made_video("0000_0", 1), made_video("0001_0", 2), made_video("0002_0", 3)]


def plan_on(ranks: int, **layout: int) -> Plan:
    return small_plan(ranks, VIDEOS, layout=LayoutConfig(**layout), image=TINY_IMAGE, batch_size=1)


def events_of(attempt: AttemptDir) -> RankEvents:
    events = read_events(attempt.events(0))
    assert events
    return events


def images_of(run: Path) -> dict[str, np.ndarray]:
    return {p.stem: np.asarray(Image.open(p)).astype(int) for p in sorted((run / "images" / "samples").glob("*.png"))}


@pytest.fixture(scope="module")
def by_one_rank(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, dict[str, bytes]]:
    run = tmp_path_factory.mktemp("one")
    return run, make(plan_on(1), run)


@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        (2, {"ulysses": 2}),
        pytest.param(2, {"dp": 2}, marks=pytest.mark.slow),
        pytest.param(3, {"ring": 3}, marks=pytest.mark.slow),
        pytest.param(5, {"ring": 5}, marks=pytest.mark.slow),
    ],
)
def test_the_same_images_on_any_ranks(
    ranks: int, layout: dict[str, int], by_one_rank: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    """A sum in another order may turn a rounding; the three images differ from each other by far more."""
    make(plan_on(ranks, **layout), tmp_path)
    want, got = images_of(by_one_rank[0]), images_of(tmp_path)
    assert list(got) == list(want) == ["0000_0", "0001_0", "0002_0"]
    assert all(np.abs(got[name] - want[name]).max() <= 1 for name in want)
    assert np.abs(want["0000_0"] - want["0001_0"]).max() > 20


def test_a_video_starts_from_its_image(by_one_rank: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    """As if the image had been given, rescaled to the size of the video."""
    run, videos = by_one_rank
    first = run / "images" / "samples" / "0001_0.png"
    with Image.open(first) as image:
        assert image.size == (112, 80)  # about the area of 96 x 96 pixels
        image.resize((80, 48), Image.Resampling.BILINEAR).save(tmp_path / "given.png")
    given = replace(VIDEOS[1], image=False, refs=(str(tmp_path / "given.png"),))
    assert make(small_plan(1, [given], batch_size=1), tmp_path / "given") == {"0001_0": videos["0001_0"]}


def test_every_image_comes_before_any_video(by_one_rank: tuple[Path, dict[str, bytes]]) -> None:
    run = RunDir(by_one_rank[0])
    events = events_of(run.attempt(0))
    (image,) = (span for span in events.spans if span.phase == IMAGE)
    assert all(span.start_s >= image.end_s for span in events.spans if span.phase in ("load", "denoise", "vae"))
    assert {step.video for step in events.steps} == {"0000_0", "0001_0", "0002_0"}
    assert len(events.steps) == 3 * 4  # those of the videos
    rank = build_report(run.path)["attempts"][0]["ranks"][0]
    assert 0 < rank["parts"]["image"] <= image.end_s - image.start_s
    assert sum(rank["parts"].values()) == pytest.approx(rank["wall_s"], abs=1e-5)  # each is rounded to a microsecond


@pytest.mark.slow
def test_another_start_makes_no_image_again(by_one_rank: tuple[Path, dict[str, bytes]], tmp_path: Path) -> None:
    """As after a job was requeued with the same plan, when images are there and videos are not."""
    plan = plan_on(2, ulysses=2)
    make(plan, tmp_path)
    images = {path: path.stat().st_mtime_ns for path in (tmp_path / "images" / "samples").iterdir()}
    for path in (tmp_path / "samples").iterdir():
        path.unlink()
    again = RunDir(tmp_path).attempt(1)
    again.path.mkdir()
    run_ranks(2, tmp_path, on_rank, str(again), plan)
    assert len(list((tmp_path / "samples").glob("*.mp4"))) == 3
    assert {path: path.stat().st_mtime_ns for path in (tmp_path / "images" / "samples").iterdir()} == images
    assert not [span for span in events_of(again).spans if span.phase == IMAGE]


@pytest.mark.slow
def test_an_image_that_failed_fails_its_video_alone(tmp_path: Path) -> None:
    record_failed(RunDir(tmp_path).images, {"0001_0": "its pixels are not finite"})
    plan = plan_on(1)
    run_ranks(1, tmp_path, on_rank, str(prepare(plan, tmp_path)), plan)
    assert sorted(path.stem for path in (tmp_path / "samples").glob("*.mp4")) == ["0000_0", "0002_0"]
    failed = failed_videos(RunDir(tmp_path))
    assert list(failed) == ["0001_0"]
    assert failed["0001_0"].startswith("its first frame could not be made: its pixels are not finite")


@pytest.mark.slow
def test_images_alone(tmp_path: Path) -> None:
    """The attempt of --images-only: the video model is not even loaded."""
    plan = replace(plan_on(2, dp=2), videos=())
    run_ranks(2, tmp_path, on_rank, str(prepare(plan, tmp_path)), plan)
    assert sorted(images_of(tmp_path)) == ["0000_0", "0001_0", "0002_0"]
    assert not (tmp_path / "samples").exists()
    assert not [s for s in events_of(RunDir(tmp_path).attempt(0)).spans if s.phase == "load"]


def weights_left(attempt: str, plan: Plan) -> list[int]:
    """How many of the networks loaded before are alive when networks are loaded."""
    loaded: list[weakref.ref[Any]] = []
    alive = []
    load = load_networks.load_as_planned

    def watched(ctx: Any) -> load_networks.Networks:
        alive.append(sum(ref() is not None for ref in loaded))
        networks = load(ctx)
        loaded.extend(weakref.ref(weight) for part in (networks.mmdit, networks.vae) for weight in part.parameters())
        return networks

    gc.disable()
    with mock.patch.object(run_module, "load_as_planned", watched):
        on_rank(attempt, plan)
    return alive


@pytest.mark.slow
def test_the_image_model_is_gone_before_the_video_model_loads(tmp_path: Path) -> None:
    """Without the help of the garbage collector, which may come too late for a GPU."""
    plan = plan_on(1)
    assert run_ranks(1, tmp_path, weights_left, str(prepare(plan, tmp_path)), plan) == [[0, 0]]


@pytest.mark.slow
def test_a_lora_of_the_image_model_changes_the_images(
    by_one_rank: tuple[Path, dict[str, bytes]], tmp_path: Path
) -> None:
    """The same ones on one rank and on two that share the weights."""
    generator = torch.Generator().manual_seed(5)
    down, up = (torch.randn(shape, generator=generator) for shape in ((2, 32), (96, 2)))
    layer = "transformer.double_blocks.0.img_attn.qkv"
    save_file({f"{layer}.lora_A.weight": down, f"{layer}.lora_B.weight": up}, tmp_path / "lora.safetensors")
    assert TINY_IMAGE.model
    image = replace(TINY_IMAGE, model=replace(TINY_IMAGE.model, lora=[f"{tmp_path}/lora.safetensors@0.5"]))
    made = []
    for ranks in (1, 2):
        plan = small_plan(ranks, VIDEOS[:1], layout=LayoutConfig(dp=1), image=image, batch_size=1)
        assert plan.images
        plan = replace(plan, videos=(), images=replace(plan.images, placement=Placement(shard=Shard.node)))
        run = tmp_path / str(ranks)
        run_ranks(ranks, tmp_path, on_rank, str(prepare(plan, run)), plan)
        made.append(images_of(run)["0000_0"])
    assert np.abs(made[0] - made[1]).max() <= 1
    assert np.abs(made[0] - images_of(by_one_rank[0])["0000_0"]).max() > 5


def test_the_plan_of_the_images() -> None:
    plan = plan_on(3, ring=3)
    assert plan.images
    assert (plan.images.geometry.height_px, plan.images.geometry.width_px) == (80, 112)
    assert plan.first_frame_px == (48, 80)
    assert [image.text for image in plan.images.videos] == ["rain"] * 3  # without the suffixes
    assert plan.images.model.text == TINY.text
    assert Plan.from_dict(json.loads(json.dumps(asdict(plan)))) == plan


def test_after_memory_ran_out_each_stage_goes_on_with_what_is_missing() -> None:
    plan = replace(plan_on(2, dp=2), smaller=None)
    assert plan.images
    plan = replace(plan, images=replace(plan.images, smaller=None))
    assert plan.with_less(VIDEOS) is None  # neither stage has a smaller placement
    assert plan.images
    smaller = replace(plan, images=replace(plan.images, smaller=Placement(shard=Shard.node)))
    less = smaller.with_less(VIDEOS[1:], smaller.images.videos[2:] if smaller.images else ())
    assert less
    assert less.images
    assert (less.images.placement.shard, less.placement) == (Shard.node, plan.placement)
    assert ([v.name for v in less.images.videos], len(less.videos)) == (["0002_0"], 2)
    done = smaller.with_less(VIDEOS[2:])
    assert done
    assert done.images is None
