"""Save phase: write a video, and then the record of its completion."""

import json
import logging
from dataclasses import asdict

import numpy as np
from jaxtyping import UInt8

from opensora_launch.media.video import save_video
from opensora_launch.plan.plan import VideoRequest
from opensora_launch.rundir import write_whole
from opensora_launch.worker.context import RankContext

log = logging.getLogger("opensora_launch.worker")


def save_with_record(
    ctx: RankContext, video: VideoRequest, frames: UInt8[np.ndarray, "F Y X 3"], cut_tokens: int
) -> None:
    """Write the video and then its record; both files appear whole or not at all.

    cut_tokens: tokens of the prompt that did not fit.
    """
    plan = ctx.plan
    with ctx.recorder.span("save", video=video.name):
        ctx.run_dir.samples.mkdir(parents=True, exist_ok=True)
        path = save_video(ctx.run_dir.samples / video.name, frames, plan.geometry.fps)
        record = {
            **asdict(video),
            "cut_tokens": cut_tokens,
            "file": path.name,
            "geometry": asdict(plan.geometry),
            "sampling": asdict(plan.sampling),
            "model": {
                "name": plan.model.name,
                "init": plan.model.init,
                "folder": plan.model.folder,
                "lora": plan.model.lora,
            },
            "precision": plan.precision,
            "numerics": asdict(plan.numerics),
            "placement": asdict(plan.placement),
            "approximate": list(plan.approximate),
            "layouts": {str(rows): str(layout) for rows, layout in plan.layouts},
            "ranks": plan.machine.ranks,
            "threads_per_rank": plan.threads_per_rank,
            **ctx.facts,
        }
        write_whole(ctx.run_dir.record(video.name), json.dumps(record, ensure_ascii=False, indent=1) + "\n")
    log.info("saved %s", path)
