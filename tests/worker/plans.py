"""Small plans for tests: the tiny model, a few steps."""

from collections.abc import Sequence
from typing import Any

from opensora_launch.plan.make_plan import make_plan
from opensora_launch.plan.plan import Machine, Plan, VideoRequest
from opensora_launch.plan.rows import Guidance
from opensora_launch.schema.autoencoder import VaeConfig
from opensora_launch.schema.config import (
    ImageConfig,
    Init,
    LauncherConfig,
    LayoutConfig,
    MmditConfig,
    ModelConfig,
    PlacementConfig,
    RunConfig,
    SamplingConfig,
    TextConfig,
    VideoConfig,
)

TINY = ModelConfig(
    name="tiny",
    init=Init.random,
    mmdit=MmditConfig(
        in_channels=16,
        vec_in_dim=24,
        context_in_dim=32,
        hidden_size=48,
        num_heads=3,
        depth=1,
        depth_single_blocks=1,
        axes_dim=[4, 6, 6],
    ),
    vae=VaeConfig(
        latent_channels=4, layers_per_block=1, norm_num_groups=4, block_out_channels=[8, 8, 8, 8], tile_px=32
    ),
    text=TextConfig(t5_max_length=7),
)


def video(
    name: str = "0000_0", seed: int = 42, steps: int = 13, refs: Sequence[str] = (), cond: str = "t2v", **more: Any
) -> VideoRequest:
    guidance = Guidance(steps, 7.5, 3.0, text_osci=True, image_osci=True, temporal_osci="i2v" in cond, **more)
    return VideoRequest(name, "rain", f"rain {seed}. 24 FPS.", "", tuple(refs), cond, seed, guidance)


def small_plan(
    ranks: int,
    videos: Sequence[VideoRequest],
    *,
    layout: LayoutConfig | None = None,
    placement: PlacementConfig | None = None,
    frames: int = 9,
    model: ModelConfig = TINY,
    image: ImageConfig | None = None,
    **sampling: Any,
) -> Plan:
    run = RunConfig(
        model=model,
        image=image or ImageConfig(),
        video=VideoConfig(resolution=None, height_px=48, width_px=80, num_frames=frames),
        layout=layout or LayoutConfig(),
        placement=placement or PlacementConfig(),
        sampling=SamplingConfig(**sampling),
        launcher=LauncherConfig(threads_per_rank=1),
    )
    return make_plan(run, Machine("cpu", 1, ranks, 2), videos, "0")
