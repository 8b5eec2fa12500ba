"""Compare the facts of the public models' decoders with the modules, and check that estimates use them."""

import json
import os
import subprocess
import sys
from functools import cache
from pathlib import Path
from typing import Any

import pytest

from opensora_launch.plan.layout import Layout
from opensora_launch.plan.memory import decode_bytes, finished_bytes, tile_bytes
from opensora_launch.plan.networks import NETWORKS, VAES
from opensora_launch.plan.video_size import VideoSize

ROOT = Path(__file__).parents[2]
MEASURED = ("sd", "flux", "wan", "wan2.2", "cogvideox", "hunyuan", "mochi", "dcae")


@cache
def measured() -> dict[str, Any]:
    argv = [sys.executable, str(Path(__file__).parent / "decoders.py")]
    done = subprocess.run(argv, capture_output=True, text=True, env=os.environ | {"PYTHONPATH": str(ROOT)})
    assert done.returncode == 0, done.stderr
    found: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", MEASURED)
def test_decoders_are_what_the_modules_are(name: str) -> None:
    found, vae = measured()[name], VAES[name]
    assert vae.parameters == found["parameters"]
    assert vae.flops == pytest.approx(found["flops"], rel=0.02)
    if name != "hunyuan":  # test_memory.py checks the bytes of our own decoder
        frames = min(found["frames"], vae.frames or found["frames"])
        assert vae.live_bytes(1, frames, 1) == pytest.approx(found["live"], rel=0.02)


def test_every_network_has_a_decoder() -> None:
    assert {net.vae for net in NETWORKS.values()} == set(VAES)


def test_a_model_is_decoded_by_its_own_vae() -> None:
    video = VideoSize(1024, 576, 129, None)
    pixels = 1024 * 576
    assert decode_bytes(NETWORKS["wan2.1_14b"], video, Layout(), 2) == 2 * pixels * (5060 + 3 * 129)
    assert decode_bytes(NETWORKS["latte_1"], video, Layout(), 2) == 2 * pixels * (768 * 14 + 3 * 129)
    assert decode_bytes(NETWORKS["flux1_dev"], VideoSize(1024, 1024, 1, None), Layout(), 2) == 2 * 1024**2 * (768 + 3)
    tiled = VideoSize(1024, 576, 129, 256)
    assert decode_bytes(NETWORKS["hunyuan_video"], tiled, Layout(), 2) == tile_bytes(tiled, 2) + finished_bytes(
        tiled, Layout(), 2
    )
    assert decode_bytes(NETWORKS["mochi_1"], tiled, Layout(), 2) == 2 * 256**2 * (710 * 129 + 3 * 129)
