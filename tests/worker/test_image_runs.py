"""Runs that make images with a Flux-like model: on any ranks as on one, resumed, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from opensora_launch.model.weight_files import check_files
from opensora_launch.plan.networks import FLUX
from opensora_launch.plan.plan import Machine
from opensora_launch.request.compose import ConfigPoint, compose
from opensora_launch.request.predicted_layouts import videos_like
from opensora_launch.request.verification import small_plan
from opensora_launch.schema.config import LayoutConfig, RunConfig
from tests.ranks import run_command
from tests.worker.test_verify import verify

TINY = ("model=tiny_flux", "sampling.num_steps=2")


def run_of(*words: str) -> RunConfig:
    (point,) = compose(words).points
    assert isinstance(point, ConfigPoint)
    return point.run


@pytest.mark.parametrize(
    ("ranks", "layout"),
    [
        (2, LayoutConfig(tp=2)),
        (2, LayoutConfig(ulysses=2)),
        (3, LayoutConfig(ring=3)),
        pytest.param(3, LayoutConfig(ulysses=3), marks=pytest.mark.slow),
        pytest.param(4, LayoutConfig(ring=2, ulysses=2), marks=pytest.mark.slow),
        pytest.param(4, LayoutConfig(tp=2, ulysses=2), marks=pytest.mark.slow),
        pytest.param(5, LayoutConfig(ring=5), marks=pytest.mark.slow),
    ],
    ids=str,
)
def test_an_image_of_several_ranks_is_that_of_one(ranks: int, layout: LayoutConfig, tmp_path: Path) -> None:
    """60 image tokens and 16 of text, and 4 heads: neither 3 nor 5 ranks share them evenly."""
    plan = small_plan(run_of(*TINY), Machine("cpu", 1, ranks, 2))
    assert (plan.geometry.num_frames, plan.geometry.grid.video_tokens) == (1, 60)
    lines = verify(ranks, layout, [], tmp_path, plan=small_plan(_with(layout), Machine("cpu", 1, ranks, 2)))
    assert [(line["tensor"], line["ok"]) for line in lines] == [("0000_0.latent", True), ("0000_0.video", True)]
    assert max(line["max_abs_one_rank"] for line in lines) < 1e-4


def _with(layout: LayoutConfig) -> RunConfig:
    given = [f"layout.{axis}={degree}" for axis, degree in vars(layout).items() if degree is not None]
    return run_of(*TINY, *given)


def images(folder: Path) -> dict[str, np.ndarray]:
    return {path.stem: np.asarray(Image.open(path)).astype(int) for path in folder.glob("runs/*/samples/*.png")}


@pytest.mark.slow
def test_groups_of_ranks_make_images_and_resume_them(tmp_path: Path) -> None:
    """Three prompts: on two groups of one rank each, then one is deleted and made again."""
    made = {}
    for ranks in (1, 2):
        folder = tmp_path / str(ranks)
        folder.mkdir()
        prompts = [word for text in ("a cat", "a dog", "a cat") for word in ("--prompt", text)]
        words = (f"topology=cpu{ranks}", f"layout.dp={ranks}", "text_cache=null", f"preview_every_steps={2 - ranks}")
        code, out, err = run_command(folder, "generate", *TINY, *prompts, *words)
        assert code == 0, err
        assert out.startswith("making 3 images in ")
        made[ranks] = images(folder)
    assert len([*tmp_path.glob("1/runs/*/previews/0000_0/step*.png")]) == 1  # not of the last step
    assert sorted(made[2]) == ["0000_0", "0001_0", "0002_0"]
    assert made[2]["0000_0"].shape == (64, 96, 3)
    assert all(np.abs(made[2][name] - made[1][name]).max() <= 1 for name in made[1])
    assert np.abs(made[2]["0000_0"] - made[2]["0001_0"]).max() > 20
    assert (made[2]["0000_0"] == made[2]["0002_0"]).all()

    (run,) = (tmp_path / "2").glob("runs/*")
    record = json.loads((run / "samples" / "0001_0.json").read_text())
    assert (record["file"], record["text"], record["geometry"]["num_frames"]) == ("0001_0.png", "a dog", 1)
    assert record["model"]["name"] == "tiny_flux"
    assert "## Images" in (run / "report.md").read_text()
    (run / "samples" / "0001_0.png").unlink()
    kept = (run / "samples" / "0000_0.png").stat().st_mtime_ns
    code, _, err = run_command(tmp_path / "2", "generate", "--resume", str(run))
    assert code == 0, err
    assert (images(tmp_path / "2")["0001_0"] == made[2]["0001_0"]).all()
    assert (run / "samples" / "0000_0.png").stat().st_mtime_ns == kept


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("--prompt", "a", "--ref", "x.png"), "cond_type=i2v_head is not possible with tiny_flux, which takes no"),
        (("--prompt", "a", "--negative-prompt", "b"), "tiny_flux has one guidance row, so a negative prompt changes"),
        (("--prompt", "a", "video.num_frames=5"), "video.num_frames=5 must be 1: the model makes images"),
        (("--prompt", "a", "engine=colossalai"), "engine=colossalai is not tested with image models, so it is refused"),
    ],
)
def test_what_an_image_model_cannot_do_is_one_line(words: tuple[str, ...], said: str, tmp_path: Path) -> None:
    code, _, err = run_command(tmp_path, "generate", *TINY, "topology=cpu1", *words)
    assert code == 2
    assert said in err
    assert "Traceback" not in err
    assert not (tmp_path / "runs").exists()


def test_the_files_config_is_the_catalogues() -> None:
    run = run_of("model=flux")
    assert (run.model.name, run.model.mmdit, run.model.vae) == (FLUX.name, FLUX.mmdit, FLUX.vae)
    assert (run.video.num_frames, run.video.resolution) == (1, "768px")
    assert (run.sampling.num_steps, run.sampling.guidance) == (50, 4.0)


def test_schnell_has_one_row_and_even_steps() -> None:
    run = run_of("model=flux_schnell")
    (video,) = videos_like(run)
    assert not video.guidance.distilled
    plan = small_plan(run_of("model=flux_schnell", "topology=cpu1"), Machine("cpu", 1, 1, 1))
    assert [rows for rows, _ in plan.layouts] == [1]
    assert (run.sampling.num_steps, run.sampling.shift, run.model.text.t5_max_length) == (4, False, 256)
    assert run.model.vae == FLUX.vae


def test_prompts_are_read_as_typed() -> None:
    entries = videos_like(run_of(*TINY))
    assert {video.text for video in entries} == {"a video"}
    assert {video.text for video in videos_like(run_of("model=tiny"))} == {"a video. 24 FPS. 4 motion score."}


@pytest.mark.parametrize(
    ("model", "licence"), [("flux", "FLUX.1 [dev] Non-Commercial"), ("flux_schnell", "Apache-2.0")]
)
def test_missing_files_are_one_line_with_the_licence(model: str, licence: str, tmp_path: Path) -> None:
    (line,) = check_files(run_of(f"model={model}", f"model.folder={tmp_path}").model)
    assert "to download them: hf download black-forest-labs/FLUX.1-" in line
    assert f"# licence: {licence}" in line
    assert f"{model.replace('flux', 'flux1').replace('_', '-') if '_' in model else 'flux1-dev'}.safetensors" in line
