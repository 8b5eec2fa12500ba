"""A plan on real ranks: the same video for any layout, batch and number of ranks; sidecars and telemetry."""

import json
import socket
import time
from dataclasses import asdict
from itertools import combinations
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
import torch.distributed as dist
from PIL import Image

from opensora_launch.model.vae import assemble
from opensora_launch.plan.plan import Plan
from opensora_launch.report.build import build_report
from opensora_launch.rundir import AttemptDir, RunDir
from opensora_launch.schema.config import LayoutConfig
from opensora_launch.telemetry.heartbeat import Heartbeat
from opensora_launch.worker.decode_videos import decode_latent
from opensora_launch.worker.denoise_videos import denoise_videos
from opensora_launch.worker.encode_references import encode_references
from opensora_launch.worker.load_networks import shard_model
from opensora_launch.worker.rank import Rank
from opensora_launch.worker.run import load_networks_and_texts, run_plan
from opensora_launch.worker.save_videos import save_sheet
from opensora_launch.worker.set_up import set_up
from tests.media.clips import noise, write_clip
from tests.ranks import run_ranks
from tests.worker.plans import small_plan, video


def on_rank(attempt: str, plan: Plan) -> None:
    rank, world = dist.get_rank(), dist.get_world_size()
    beat = Heartbeat(Path(attempt) / "heartbeat" / f"rank{rank}.json", rank=rank, host=socket.gethostname())
    beat.start()
    run_plan(plan, AttemptDir(Path(attempt)), Rank(rank, rank, world, world), beat, (time.monotonic(), time.time()))
    beat.close("done")


def make(plan: Plan, run_dir: Path) -> dict[str, bytes]:
    """Run the plan as attempt 0 of `run_dir`; the file of every video, by name."""
    attempt = prepare(plan, run_dir)
    run_ranks(plan.machine.ranks, run_dir, on_rank, str(attempt), plan, timeout=60.0)
    return {v.name: next((run_dir / "samples").glob(f"{v.name}.[mp]*[4g]")).read_bytes() for v in plan.videos}


def prepare(plan: Plan, run_dir: Path) -> Path:
    attempt = run_dir / "attempts" / "0"
    attempt.mkdir(parents=True)
    if plan.images:
        RunDir(run_dir).images.path.mkdir(exist_ok=True)
    text = json.dumps(asdict(plan))
    (run_dir / "plan.json").write_text(text)
    (attempt / "plan.json").write_text(text)
    return attempt


def pixels_on_rank(attempt: str, plan: Plan) -> dict[str, torch.Tensor]:
    rank, world = dist.get_rank(), dist.get_world_size()
    beat = Heartbeat(Path(attempt) / "heartbeat" / f"rank{rank}.json", rank=rank, host=socket.gethostname())
    ctx = set_up(plan, AttemptDir(Path(attempt)), Rank(rank, rank, world, world), beat, (time.monotonic(), time.time()))
    networks, texts = load_networks_and_texts(ctx)
    model = shard_model(ctx, networks, dict(plan.layouts))
    made = {}
    group = ctx.mesh.video.ranks[0] // ctx.mesh.video.size
    for videos in plan.batches[group :: plan.dp]:
        references = [encode_references(ctx, networks.vae, v) for v in videos]
        for v, latent in zip(videos, denoise_videos(ctx, model, texts, videos, references), strict=True):
            assert latent is not None
            grid, regions = decode_latent(ctx, networks.vae, latent)
            if regions is not None:
                made[v.name] = assemble(grid, regions)[0, :, : plan.geometry.num_frames]
    if networks.blocks:
        networks.blocks.release()
    return made


def pixels(plan: Plan, run_dir: Path) -> dict[str, torch.Tensor]:
    """The decoded videos before they are encoded: x264 may turn a last bit into another picture."""
    parts = run_ranks(plan.machine.ranks, run_dir, pixels_on_rank, str(prepare(plan, run_dir)), plan, timeout=60.0)
    return {name: video for part in parts for name, video in part.items()}


def frames_of(path: Path) -> np.ndarray:
    if path.suffix == ".png":
        return np.array(Image.open(path))[None]
    with av.open(str(path)) as container:
        return np.stack([frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)])


def assert_same(got: dict[str, torch.Tensor], want: dict[str, torch.Tensor]) -> None:
    """Equal but for rounding in fp32, after thirteen guided steps and the VAE."""
    assert got.keys() == want.keys()
    for name in want:
        torch.testing.assert_close(got[name], want[name], rtol=0, atol=2e-4)


@pytest.fixture(scope="module")
def picture(tmp_path_factory: pytest.TempPathFactory) -> str:
    path = tmp_path_factory.mktemp("refs") / "a picture.png"
    ramp = np.linspace(0, 255, 60 * 100 * 3).reshape(60, 100, 3).astype(np.uint8)
    Image.fromarray(ramp).save(path)
    return str(path)


def both(picture: str, **more: Any) -> list:
    return [video("0000_0", **more), video("0001_0", seed=7, refs=[picture], cond="i2v_head", **more)]


@pytest.fixture(scope="module")
def by_one_rank(tmp_path_factory: pytest.TempPathFactory, picture: str) -> dict[str, torch.Tensor]:
    return pixels(small_plan(1, both(picture)), tmp_path_factory.mktemp("one"))


LAYOUTS = [
    pytest.param(4, LayoutConfig(dp=1, cfg=2, ring=2), id="cfg2 x ring2"),
    pytest.param(4, LayoutConfig(dp=2, ulysses=2), id="dp2 x ulysses2"),
    pytest.param(2, LayoutConfig(dp=1, tp=2), id="tp2"),
    pytest.param(2, LayoutConfig(dp=1, cfg=2), id="cfg2", marks=pytest.mark.slow),
    pytest.param(3, LayoutConfig(dp=1), id="3 ranks", marks=pytest.mark.slow),
    pytest.param(5, LayoutConfig(dp=1, ring=5), id="ring5", marks=pytest.mark.slow),
    pytest.param(4, LayoutConfig(dp=1, ulysses=2, tp=2), id="ulysses2 x tp2", marks=pytest.mark.slow),
]


REUSE = {"reuse_every": 3, "reuse_from": 2, "guidance_until": 0.7}


@pytest.fixture(scope="module")
def reusing(tmp_path_factory: pytest.TempPathFactory, picture: str) -> dict[str, torch.Tensor]:
    return pixels(small_plan(1, both(picture, **REUSE)), tmp_path_factory.mktemp("reusing"))


@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        pytest.param(2, LayoutConfig(dp=1, cfg=2), id="cfg2"),
        pytest.param(2, LayoutConfig(dp=1, ulysses=2), id="ulysses2", marks=pytest.mark.slow),
        pytest.param(3, LayoutConfig(dp=1, ring=3), id="ring3", marks=pytest.mark.slow),
        pytest.param(4, LayoutConfig(dp=1, cfg=2, ring=2), id="cfg2 x ring2", marks=pytest.mark.slow),
    ],
)
def test_predictions_are_reused_alike_on_any_ranks(ranks, layout, picture, by_one_rank, reusing, tmp_path):
    assert_same(pixels(small_plan(ranks, both(picture, **REUSE), layout=layout), tmp_path), reusing)
    assert all((reusing[name] - by_one_rank[name]).abs().max() > 0.01 for name in reusing)


@pytest.mark.slow
def test_predictions_of_a_batch_are_reused_alike(picture, reusing, tmp_path):
    plan = small_plan(2, both(picture, **REUSE), layout=LayoutConfig(dp=1, ulysses=2), batch_size=2)
    assert_same(pixels(plan, tmp_path), reusing)


@pytest.mark.parametrize(("ranks", "layout"), LAYOUTS)
def test_the_same_videos_on_any_ranks(ranks, layout, picture, by_one_rank, tmp_path):
    """Also the image condition is drawn alike, and the VAE's tiles are blended alike."""
    assert_same(pixels(small_plan(ranks, both(picture), layout=layout), tmp_path), by_one_rank)


@pytest.mark.slow
def test_the_same_videos_of_every_mode(tmp_path):
    """On two ranks as on one: each condition takes its frames from the start, the end or both."""
    clip = str(write_clip(tmp_path / "a clip.mkv", noise(40, 48, 80, 3)))
    conds = ("t2v", "i2v_head", "i2v_tail", "i2v_loop", "v2v_head", "v2v_tail")
    refs = {"t2v": [], "i2v_loop": [clip, clip]}
    videos = [video(f"000{n}_0", steps=3, refs=refs.get(c, [clip]), cond=c) for n, c in enumerate(conds)]
    alone = pixels(small_plan(1, videos, frames=37), tmp_path / "alone")
    assert_same(pixels(small_plan(2, videos, frames=37, layout=LayoutConfig(dp=1)), tmp_path / "two"), alone)
    assert all((alone[a.name] - alone[b.name]).abs().mean() > 0.01 for a, b in combinations(videos, 2))


def test_pruned_rows_make_the_references_video(picture, by_one_rank, tmp_path):
    assert_same(pixels(small_plan(2, both(picture), prune_rows=False), tmp_path), by_one_rank)


def test_a_seed_means_the_same_video_in_a_batch(tmp_path):
    videos = [video("0000_0", seed=1), video("0001_0", seed=2)]
    alone = pixels(small_plan(1, videos), tmp_path / "alone")
    assert_same(pixels(small_plan(2, videos, batch_size=2, layout=LayoutConfig(dp=1)), tmp_path / "batch"), alone)
    assert (alone["0000_0"] - alone["0001_0"]).abs().mean() > 0.05


def test_a_bf16_state_rounds_as_the_reference_does(by_one_rank, tmp_path):
    """Another video than with the fp32 state, and not another noise."""
    rounded = pixels(small_plan(1, [video()], state_dtype="bf16"), tmp_path)["0000_0"]
    assert 0 < (rounded - by_one_rank["0000_0"]).abs().mean() < 0.1


@pytest.mark.slow
def test_a_run_is_bit_identical_when_repeated(picture, tmp_path):
    plan = small_plan(3, both(picture))
    assert make(plan, tmp_path / "a") == make(plan, tmp_path / "b")


def test_what_a_run_leaves_behind(picture, tmp_path):
    plan = small_plan(2, both(picture), layout=LayoutConfig(dp=1))
    make(plan, tmp_path)
    record = json.loads((tmp_path / "samples/0001_0.json").read_text())
    assert record["prompt"] == "rain"
    assert (record["seed"], record["cond_type"], record["refs"]) == (7, "i2v_head", [picture])
    assert record["file"] == "0001_0.mp4"
    assert record["versions"]["torch"] == torch.__version__
    assert record["layouts"]["2"] == "dp1 cfg2 ring1 ulysses1 tp1"
    assert frames_of(tmp_path / "samples/0001_0.mp4").shape == (9, 48, 80, 3)
    with av.open(str(tmp_path / "samples/0001_0.mp4")) as container:
        about = container.metadata
    assert (about["title"], json.loads(about["description"])["seed"]) == ("rain", 7)
    with Image.open(RunDir(tmp_path).sheet("0001_0")) as sheet:
        assert sheet.size == (240, 144)
    (attempt,) = build_report(tmp_path)["attempts"]
    assert [row["rank"] for row in attempt["ranks"]] == [0, 1]
    for row in attempt["ranks"]:
        assert sum(row["parts"].values()) == pytest.approx(row["wall_s"], rel=0.01)


def test_a_contact_sheet_that_cannot_be_written_costs_nothing(tmp_path, caplog):
    run = RunDir(tmp_path)
    run.sheet("0000_0").mkdir(parents=True)
    save_sheet(run, "0000_0", noise(4, 8, 8, 3))
    assert "no contact sheet for 0000_0: " in caplog.text
    run.sheet("0000_0").rmdir()
    save_sheet(run, "0000_0", noise(1, 8, 8, 3))  # an image is its own
    assert list(run.samples.iterdir()) == []


def test_one_frame_is_a_png(tmp_path):
    make(small_plan(2, [video()], frames=1), tmp_path)
    assert frames_of(tmp_path / "samples/0000_0.png").shape == (1, 48, 80, 3)
