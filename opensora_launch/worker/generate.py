"""One rank makes its share of the run's videos: load, encode text, denoise, decode, save.

Shapes: C T H W latents of a video, F Y X 3 its frames.
"""

import json
import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from opensora_launch.media.references import load_references
from opensora_launch.media.video import room_for_frames, save_video, to_frames
from opensora_launch.model.tiles import TileGrid, tile_cost, tiles_of
from opensora_launch.model.vae import Region, decode_regions, encode, posterior_sample
from opensora_launch.parallel.mesh import Mesh
from opensora_launch.parallel.rows import ShardedModel
from opensora_launch.parallel.tiles import broadcast, spread_tiles
from opensora_launch.plan.plan import Plan, VideoRequest
from opensora_launch.rundir import RunDir, write_whole
from opensora_launch.sampling.conditions import condition, pack_condition, restore_given
from opensora_launch.sampling.latents import draw_noise, pack, position_ids, unpack
from opensora_launch.sampling.schedule import timesteps
from opensora_launch.telemetry.recorder import Recorder
from opensora_launch.worker.batch import Batch, Branch, denoise_batch
from opensora_launch.worker.checkpoint import Checkpoints, fingerprint
from opensora_launch.worker.networks import Networks
from opensora_launch.worker.texts import Embedding

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}
REF_SEED_OFFSET = 1 << 32  # so that a reference's posterior draw is not the video's own noise

log = logging.getLogger("opensora_launch.worker")


@dataclass(frozen=True)
class Job:
    """What a rank works with, passed down."""

    plan: Plan
    run_dir: RunDir
    device: torch.device
    mesh: Mesh  # of the steps with the most rows; its `video` axis holds the ranks that share our videos
    recorder: Recorder
    facts: Mapping[str, Any]  # for the sidecars: versions, device, attention kernel
    checkpoints: Checkpoints | None = None  # none for a comparison, which leaves nothing behind


def generate(
    job: Job,
    networks: Networks,
    model: ShardedModel,
    texts: Mapping[str, Embedding],
    batches: Iterable[Sequence[VideoRequest]],
) -> list[str]:
    """Make these videos, one batch after another; names of the finished ones. Raises Preempted when asked to stop."""
    done: list[str] = []
    for videos in batches:
        job.recorder.heartbeat.at_once = len(videos)
        latents = denoise_videos(job, networks, model, texts, videos)
        if networks.blocks:
            networks.blocks.release()  # room for the VAE
        for video, latent in zip(videos, latents, strict=True):
            frames = decode_video(job, networks, video, latent)
            if frames is not None:
                with job.recorder.span("save", video=video.name):
                    _save(job, video, frames, texts[video.text].cut)
            done.append(video.name)
        if job.checkpoints:
            job.checkpoints.drop(videos[0].name)
    return done


def denoise_videos(
    job: Job,
    networks: Networks,
    model: ShardedModel,
    texts: Mapping[str, Embedding],
    videos: Sequence[VideoRequest],
) -> list[Float[Tensor, "C T H W"]]:
    """The videos' latents, their given frames put back, on every rank of the group."""
    plan, shape = job.plan, job.plan.geometry
    refs = [_encode_references(job, networks, video) for video in videos]
    with job.recorder.span("denoise", video=videos[0].name):
        batch = _batch(job, texts, videos, refs)
        final = _denoise(job, batch, model, videos)
        latents = unpack(
            final, shape.latent_frames, shape.latent_height, shape.latent_width, plan.model.mmdit.patch_size
        )
    if not torch.isfinite(latents).all():
        raise FloatingPointError(
            f"the latents of {videos[0].name} are not finite: weights or precision ({plan.precision}) are at fault"
        )
    return [restore_given(x, v.cond_type, r) for x, v, r in zip(latents, videos, refs, strict=True)]


def _denoise(job: Job, batch: Batch, model: ShardedModel, videos: Sequence[VideoRequest]) -> Float[Tensor, "V S C"]:
    """From where a run before this one has stopped, if it has."""
    if job.checkpoints is None:
        return denoise_batch(batch, model, job.recorder.step)
    name, kept = batch.name, job.checkpoints
    own = fingerprint(job.plan, videos)
    first, latents = kept.load(name, own, batch.latents)
    going_on = replace(batch, latents=latents)
    return denoise_batch(going_on, model, job.recorder.step, first, lambda done, x: kept.after_step(name, own, done, x))


def _batch(
    job: Job,
    texts: Mapping[str, Embedding],
    videos: Sequence[VideoRequest],
    refs: Sequence[Sequence[Tensor]],
) -> Batch:
    plan, shape, device = job.plan, job.plan.geometry, job.device
    patch, sampling = plan.model.mmdit.patch_size, plan.sampling
    latent = (plan.model.vae.latent_channels, shape.latent_frames, shape.latent_height, shape.latent_width)
    noise = draw_noise(
        [v.seed for v in videos],
        latent,
        device=device if sampling.noise_device == "cuda" else torch.device("cpu"),
        dtype=DTYPES[plan.precision] if sampling.noise_device == "cuda" else torch.float32,
    ).to(device, DTYPES[sampling.state_dtype])
    guidance = videos[0].guidance
    return Batch(
        name=videos[0].name,
        latents=pack(noise, patch),
        img_ids=position_ids(latent[1], latent[2] // patch, latent[3] // patch, device),
        branches=[_branches(job, texts, v, r, like) for v, r, like in zip(videos, refs, noise.float(), strict=True)],
        guidance=guidance,
        times=timesteps(
            guidance.num_steps,
            shape.tokens_per_frame,
            shape.latent_frames,
            shift=sampling.shift,
            flow_shift=sampling.flow_shift,
        ),
        latent_frames=shape.latent_frames,
        prune=sampling.prune_rows,
    )


def _branches(
    job: Job, texts: Mapping[str, Embedding], video: VideoRequest, refs: Sequence[Tensor], like: Tensor
) -> tuple[Branch, ...]:
    """Inputs of the three guidance branches: text and condition, negative and condition, negative and none."""
    text, negative = (texts[t].to(job.device) for t in (video.text, video.negative))
    if not job.plan.model.mmdit.cond_embed:
        return ((text.t5, text.clip, None), *[(negative.t5, negative.clip, None)] * 2)
    masks, given = condition(video.cond_type, refs, like)
    cond = pack_condition(masks, given, job.plan.model.mmdit.patch_size)
    nothing = torch.zeros_like(cond)
    return (
        (text.t5, text.clip, cond),
        (negative.t5, negative.clip, cond),
        (negative.t5, negative.clip, nothing),
    )


def _encode_references(job: Job, networks: Networks, video: VideoRequest) -> list[Float[Tensor, "C T H W"]]:
    """Latents of the video's references, drawn with the video's own seed; the same on every rank of the group."""
    if video.cond_type == "t2v" or job.plan.geometry.latent_frames == 1:
        return []
    shape, cfg, axis = job.plan.geometry, job.plan.model.vae, job.mesh.video
    with job.recorder.span("vae", video=video.name):
        latents = []
        for k, pixels in enumerate(load_references(video.refs, video.cond_type, shape.height_px, shape.width_px)):
            moments = encode(networks.vae, pixels, tiles_of(cfg), spread_tiles(axis, tile_cost))
            sample = None
            if moments is not None:
                generator = torch.Generator().manual_seed((video.seed + (k + 1) * REF_SEED_OFFSET) % 2**63)
                sample = posterior_sample(cfg, moments.float(), generator)[0]
            latents.append(broadcast(axis, sample, job.device))
    return latents


def decode_video(
    job: Job, networks: Networks, video: VideoRequest, latent: Float[Tensor, "C T H W"]
) -> UInt8[np.ndarray, "F Y X 3"] | None:
    """The frames on the group's first rank, None on the others. The device holds a tile's output at a time."""
    with job.recorder.span("vae", video=video.name):
        grid, regions = decode_latent(job, networks, latent)
        if regions is None:
            return None
        frames = room_for_frames(*grid.out_shape)
        for region in regions:
            frames[region.frames, region.rows, region.columns] = to_frames(region.values[0])
    return frames[: job.plan.geometry.num_frames]


def decode_latent(
    job: Job, networks: Networks, latent: Float[Tensor, "C T H W"]
) -> tuple[TileGrid, Iterator[Region] | None]:
    """Regions of the video's pixels on the group's first rank, as they are finished."""
    cfg = job.plan.model.vae
    return decode_regions(networks.vae, cfg, latent[None], tiles_of(cfg), spread_tiles(job.mesh.video, tile_cost))


def _save(job: Job, video: VideoRequest, frames: UInt8[np.ndarray, "F Y X 3"], cut_tokens: int) -> None:
    """The video, then the record of its completion; both appear whole or not at all."""
    folder = job.run_dir.samples
    folder.mkdir(parents=True, exist_ok=True)
    path = save_video(folder / video.name, frames, job.plan.geometry.fps)
    plan = job.plan
    record = {
        **asdict(video),
        "cut_tokens": cut_tokens,
        "file": path.name,
        "geometry": asdict(plan.geometry),
        "sampling": asdict(plan.sampling),
        "model": {"name": plan.model.name, "init": plan.model.init, "folder": plan.model.folder},
        "precision": plan.precision,
        "numerics": asdict(plan.numerics),
        "placement": asdict(plan.placement),
        "approximate": list(plan.approximate),
        "layouts": {str(rows): str(layout) for rows, layout in plan.layouts},
        "ranks": plan.machine.ranks,
        "threads_per_rank": plan.threads_per_rank,
        **job.facts,
    }
    write_whole(job.run_dir.record(video.name), json.dumps(record, ensure_ascii=False, indent=1) + "\n")
    log.info("saved %s", path)
