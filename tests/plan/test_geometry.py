"""Compare sizes and tokens with the reference's tables."""

import json
from pathlib import Path

import pytest

from opensora_launch.plan.geometry import geometry_of, geometry_problems, pixel_size
from opensora_launch.plan.networks import OPEN_SORA_2_DC_AE
from opensora_launch.schema.config import ModelConfig, VideoConfig

REFERENCE = Path(__file__).parent.parent / "reference"
TABLES = json.loads((REFERENCE / "resolutions.json").read_text())["tables"]
SP_ROWS = json.loads((REFERENCE / "sp_geometry.json").read_text())["rows"]


@pytest.mark.parametrize("name", TABLES)
def test_pixel_sizes_are_the_references(name):
    """The table of images is training=True."""
    stride, resolution, training = name.split("/")
    of_images = training == "training=True"
    got = {
        aspect: list(pixel_size(resolution, aspect, int(stride[2:]), nearest_area=of_images)) for aspect in TABLES[name]
    }
    assert got == TABLES[name]


def test_tokens_of_all_ninety_geometries():
    assert len(SP_ROWS) == 90
    for row in SP_ROWS:
        video = VideoConfig(row["resolution"], row["aspect_ratio"], num_frames=row["num_frames"])
        assert geometry_problems(video, ModelConfig()) == []
        got = geometry_of(video, ModelConfig())
        assert (got.height_px, got.width_px, got.latent_frames) == (row["height"], row["width"], row["latent_frames"])
        assert (got.tokens_per_frame, got.grid.video_tokens) == (row["tokens_per_frame"], row["img_tokens"])
        assert got.grid.total_tokens == row["total_tokens"]


def test_every_problem_is_reported_at_once_with_its_remedy():
    video = VideoConfig(resolution=None, height_px=199, width_px=None, num_frames=128, fps=0)
    assert geometry_problems(video, ModelConfig()) == [
        "video.num_frames=128 must be 1 plus a multiple of 4; the nearest is 129",
        "video.fps=0 must be between 1 and 240",
        "video.height_px=199 must be a multiple of 16; the nearest is 192",
        "video.width_px is not set; video=custom needs video.height_px and video.width_px",
    ]


@pytest.mark.parametrize(
    ("video", "message"),
    [
        (VideoConfig("big"), "video.resolution=big is not known; write it as 256px, 768px or 480p"),
        (VideoConfig("12px"), "video.resolution=12px is too small; the smallest is 64px"),
        (VideoConfig("256px", "7:5"), "video.aspect_ratio=7:5 is not known; use one of 16:9, 9:16, 1:1"),
        (VideoConfig("256px", width_px=64), "video.width_px=64 contradicts video.resolution=256px"),
    ],
)
def test_bad_sizes(video, message):
    (problem,) = geometry_problems(video, ModelConfig())
    assert problem.startswith(message)


def test_the_dc_ae_has_its_own_rules():
    """32 pixels and 4 frames per latent, and no frame of its own at the start; a picture is one frame."""
    got = geometry_of(VideoConfig("768px", num_frames=128), OPEN_SORA_2_DC_AE)
    assert (got.height_px, got.width_px, got.latent_frames, got.tokens_per_frame) == (576, 1024, 32, 576)
    assert geometry_of(VideoConfig("768px", num_frames=1), OPEN_SORA_2_DC_AE).latent_frames == 1
    video = VideoConfig(resolution=None, height_px=200, width_px=96, num_frames=129)
    assert geometry_problems(video, OPEN_SORA_2_DC_AE) == [
        "video.num_frames=129 must be a multiple of 4; the nearest is 128",
        "video.height_px=200 must be a multiple of 32; the nearest is 192",
    ]
