"""The image stage of a request: its config, and the images to make. Pure.

The stage is a request of its own, with the image model as its model: one image for each video that needs a first frame.
"""

import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from opensora_launch.plan.geometry import geometry_of, image_size, resolution_problems
from opensora_launch.plan.plan import VideoRequest
from opensora_launch.plan.rows import Guidance
from opensora_launch.schema.config import ImageConfig, LayoutConfig, PlacementConfig, RunConfig, VideoConfig


def image_problems(run: RunConfig) -> list[str]:
    """Return what keeps a request from making first frames; the video itself has no problems."""
    image, problems = run.image, list[str]()
    if image.model is None:
        return []
    if run.video.num_frames == 1:
        problems.append("image= makes the first frame of a video, but video.num_frames=1 is an image: leave image= out")
    if image.resolution is not None:
        problems += resolution_problems("image.resolution", image.resolution, _stride_px(run))
    if not (math.isfinite(image.guidance) and image.guidance >= 0):
        problems.append(f"image.guidance={image.guidance} must be a number of at least 0")
    for name in ("context_in_dim", "vec_in_dim"):
        video, own = getattr(run.model.mmdit, name), getattr(image.model.mmdit, name)
        if own != video:
            problems.append(
                f"image.model.mmdit.{name}={own}, but model={run.model.name} has {video}: both read the same text "
                f"embeddings, so choose an image model of that size"
            )
    return problems


def image_run(run: RunConfig) -> RunConfig:
    """Return the config of the image stage, for a request without `image_problems`.

    The planner is free to choose its layout and where its weights are kept.
    """
    image, text = run.image, Path(run.model.folder)
    assert image.model, "call image_problems() first"
    height, width = _image_px(run, image.resolution)
    return replace(
        run,
        image=ImageConfig(),
        model=replace(
            image.model,
            text=run.model.text,
            t5_folder=str(text / run.model.t5_folder),
            clip_folder=str(text / run.model.clip_folder),
        ),
        video=VideoConfig(resolution=None, height_px=height, width_px=width, num_frames=1, fps=run.video.fps),
        sampling=replace(
            run.sampling,
            num_steps=image.num_steps or run.sampling.num_steps,
            guidance=image.guidance,
            shift=image.shift,
            flow_shift=image.flow_shift,
            batch_size=None,
            prune_rows=True,
        ),
        layout=LayoutConfig(),
        placement=PlacementConfig(),
        preview_every_steps=0,
    )


def image_requests(run: RunConfig, videos: Sequence[VideoRequest]) -> tuple[VideoRequest, ...]:
    """Return the images to make: of the prompt without the suffixes of videos, with the video's seed."""
    image = run.image
    distilled = image.model is not None and image.model.mmdit.guidance_embed
    return tuple(
        replace(
            video,
            text=video.refined or video.prompt,
            refs=(),
            cond_type="t2v",
            image=False,
            guidance=Guidance(
                num_steps=image.num_steps or video.guidance.num_steps,
                text_scale=image.guidance,
                image_scale=1.0,
                text_osci=False,
                image_osci=False,
                temporal_osci=False,
                distilled=distilled,
            ),
        )
        for video in videos
        if video.image
    )


def first_frame_px(run: RunConfig) -> tuple[int, int] | None:
    """Return (height, width) to which the images are rescaled before they are read as first frames; None: they are not.

    As in the reference: to the size that the table for images has for the video's resolution, if that is another one.
    """
    if run.image.resolution in (None, run.video.resolution):
        return None
    return _image_px(run, run.video.resolution)


def _image_px(run: RunConfig, resolution: str | None) -> tuple[int, int]:
    """Return (height, width) of an image with that resolution and the shape of the videos; None: with their size."""
    if resolution is not None:
        return image_size(run.video, resolution, _stride_px(run))
    geometry = geometry_of(run.video, run.model)
    return geometry.height_px, geometry.width_px


def _stride_px(run: RunConfig) -> int:
    return run.model.vae.stride_px * run.model.mmdit.patch_size
