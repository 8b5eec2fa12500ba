"""Save phase: write a video, then the record of its completion, then its contact sheet."""

import json
import logging
from dataclasses import asdict

import numpy as np
from jaxtyping import UInt8

from opensora_launch.media.contact_sheet import contact_sheet
from opensora_launch.media.early_video import EarlyVideo
from opensora_launch.media.video import save_png
from opensora_launch.model.block_parts import EAGER
from opensora_launch.plan.plan import VideoRequest
from opensora_launch.rundir import RunDir, write_whole
from opensora_launch.runs.remake import remake_command
from opensora_launch.worker.context import RankContext

log = logging.getLogger("opensora_launch.worker")


def early_video(ctx: RankContext, video: VideoRequest) -> EarlyVideo:
    """Return the file of a video that is about to be decoded."""
    return EarlyVideo(ctx.run_dir.samples / video.name, ctx.plan.geometry.fps, _about(ctx, video))


def save_with_record(
    ctx: RankContext, video: VideoRequest, file: EarlyVideo, frames: UInt8[np.ndarray, "F Y X 3"], cut_tokens: int
) -> None:
    """Finish the video and then write its record; both files appear whole or not at all. The sheet may be missing.

    cut_tokens: tokens of the prompt that did not fit.
    """
    plan = ctx.plan
    with ctx.recorder.span("save", video=video.name):
        path = file.finish(frames)
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
            "compiled": ctx.parts is not EAGER,
        }
        write_whole(ctx.run_dir.record(video.name), json.dumps(record, ensure_ascii=False, indent=1) + "\n")
        save_sheet(ctx.run_dir, video.name, frames)
    log.info("saved %s", path)


def _about(ctx: RankContext, video: VideoRequest) -> dict[str, str]:
    """Return what the file itself says about its making."""
    plan = ctx.plan
    settings = {
        "seed": video.seed,
        "num_steps": video.guidance.num_steps,
        "guidance": video.guidance.text_scale,
        "cond_type": video.cond_type,
        "model": plan.model.name,
        "precision": plan.precision,
        "opensora_launch": plan.version,
    }
    settings |= {"refined": video.refined} if video.refined is not None else {}
    about = {"title": video.prompt, "description": json.dumps(settings, ensure_ascii=False)}
    command = remake_command(ctx.run_dir, video)
    return about | ({"comment": command} if command else {})


def save_sheet(run: RunDir, video: str, frames: UInt8[np.ndarray, "F Y X 3"]) -> None:
    """Write the contact sheet of a finished video; a failure is only logged. An image needs none."""
    if len(frames) == 1:
        return
    try:
        save_png(run.sheet(video), contact_sheet(frames))
    except (OSError, ValueError, MemoryError) as error:
        log.warning("no contact sheet for %s: %s", video, error)
