"""Denoise phase: from the noise of a batch of videos, or the latents of a stopped run, to their latents (C T H W)."""

from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass, replace

import torch
import torch.distributed as dist
from jaxtyping import Float
from torch import Tensor

from opensora_launch.model.text_encoders import Embedding
from opensora_launch.parallel.mesh import Axis
from opensora_launch.parallel.sharded_model import RowInputs, ShardedModel, own_rows
from opensora_launch.plan.plan import VideoRequest
from opensora_launch.plan.rows import Guidance
from opensora_launch.sampling.conditions import condition, pack_condition, restore_given
from opensora_launch.sampling.denoise import AfterStep, Reused, StepRow, batch_rows, denoise, equal_inputs
from opensora_launch.sampling.latents import draw_noise, pack, position_ids, unpack
from opensora_launch.sampling.schedule import timesteps
from opensora_launch.worker.checkpoint import fingerprint
from opensora_launch.worker.context import DTYPES, RankContext

Branch = tuple[Tensor, Tensor, Tensor | None]  # txt (T context), y_vec (vec), cond (S cond_channels)

# Video, step, rows, own rows, layout, steps -> a context that times one denoising step, as `Recorder.step` does.
StepRecord = Callable[[str, int, int, int, str, int], AbstractContextManager[None]]


@dataclass(frozen=True)
class Batch:
    """Whole videos that are denoised together; the same on every rank of the mesh."""

    name: str
    latents: Float[Tensor, "V S C"]  # the noise, or what a stopped run stored
    img_ids: Float[Tensor, "1 S A"]
    branches: Sequence[tuple[Branch, ...]]  # the three guidance branches of each video
    guidance: Guidance
    times: Sequence[float]
    latent_frames: int
    prune: bool = True


def denoise_batch(
    batch: Batch,
    model: ShardedModel,
    record: StepRecord,
    first: int = 0,
    reused: Reused = (),
    after_step: AfterStep = lambda done, latents, reused: None,
) -> Float[Tensor, "V S C"]:
    """Return the denoised latents, on every rank. first: how many steps the latents of the batch have been through.

    `reused` is what these steps left to `after_step`.
    """
    equal_to = [equal_inputs(branches) for branches in batch.branches]
    steps = batch_rows(batch.guidance, batch.latent_frames, equal_to, batch.prune)

    def predict(step: int, latents: Tensor, t: float, rows: Sequence[StepRow]) -> Tensor:
        mesh = model.meshes[len(rows)]
        own = own_rows(mesh, len(rows))
        with record(batch.name, step, len(rows), own.stop - own.start, str(mesh.layout), len(steps)):
            inputs = [
                RowInputs(video, t, *batch.branches[video][row.branch], batch.guidance.text_scale)
                for video, row in rows
            ]
            return model.predict(latents, batch.img_ids, inputs)

    with torch.no_grad():
        return denoise(batch.latents, batch.times, steps, predict, first=first, reused=reused, after_step=after_step)


def denoise_videos(
    ctx: RankContext,
    model: ShardedModel,
    texts: Mapping[str, Embedding],
    videos: Sequence[VideoRequest],
    references: Sequence[Sequence[Tensor]],
) -> list[Float[Tensor, "C T H W"] | None]:
    """Return the latents of the videos, with their given frames put back, on every rank of the group.

    references: the latents of each video's references. None stands for latents that are not finite on some rank.
    """
    plan, shape = ctx.plan, ctx.plan.geometry
    with ctx.recorder.span("denoise", video=videos[0].name):
        final = _denoise(ctx, _batch(ctx, texts, videos, references), model, videos)
        latents = unpack(
            final, shape.latent_frames, shape.latent_height, shape.latent_width, plan.model.mmdit.patch_size
        )
        finite = _finite_on_all(ctx.mesh.video, latents)
    restored = [restore_given(x, v.cond_type, r) for x, v, r in zip(latents, videos, references, strict=True)]
    return [latent if good else None for latent, good in zip(restored, finite, strict=True)]


def _finite_on_all(axis: Axis, latents: Float[Tensor, "V C T H W"]) -> list[bool]:
    """Return for each video whether its latents are finite on all ranks of the axis."""
    finite = torch.isfinite(latents).flatten(1).all(1).to(torch.uint8)
    if axis.size > 1:
        with axis.exchange(0):
            dist.all_reduce(finite, dist.ReduceOp.MIN, group=axis.group)
    return [bool(good) for good in finite.tolist()]


def _denoise(
    ctx: RankContext, batch: Batch, model: ShardedModel, videos: Sequence[VideoRequest]
) -> Float[Tensor, "V S C"]:
    """Denoise the batch, from where an earlier attempt stopped if there was one."""
    if ctx.checkpoints is None:
        return denoise_batch(batch, model, ctx.recorder.step)
    name, kept, previews = batch.name, ctx.checkpoints, ctx.previews
    own = fingerprint(ctx.plan, videos)
    first, latents, reused = kept.load(name, own, batch.latents)
    resumed = replace(batch, latents=latents)

    def after_step(done: int, latents: Tensor, reused: Reused) -> None:
        if previews:
            start = ctx.recorder.mark()
            if previews.after_step(videos, batch.times, done, latents):
                ctx.recorder.work("preview", start)
        kept.after_step(name, own, done, latents, reused)

    if previews:
        previews.begin(latents)
    return denoise_batch(resumed, model, ctx.recorder.step, first, reused, after_step)


def _batch(
    ctx: RankContext,
    texts: Mapping[str, Embedding],
    videos: Sequence[VideoRequest],
    references: Sequence[Sequence[Tensor]],
) -> Batch:
    plan, shape, device = ctx.plan, ctx.plan.geometry, ctx.device
    patch, sampling = plan.model.mmdit.patch_size, plan.sampling
    latent = (plan.model.vae.latent_channels, shape.latent_frames, shape.latent_height, shape.latent_width)
    noise = draw_noise(
        [v.seed for v in videos],
        latent,
        device=device if sampling.noise_device == "cuda" else torch.device("cpu"),
        dtype=ctx.dtype if sampling.noise_device == "cuda" else torch.float32,
    ).to(device, DTYPES[sampling.state_dtype])
    guidance = videos[0].guidance
    return Batch(
        name=videos[0].name,
        latents=pack(noise, patch),
        img_ids=position_ids(latent[1], latent[2] // patch, latent[3] // patch, device),
        branches=[
            _branches(ctx, texts, v, r, like) for v, r, like in zip(videos, references, noise.float(), strict=True)
        ],
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
    ctx: RankContext, texts: Mapping[str, Embedding], video: VideoRequest, references: Sequence[Tensor], like: Tensor
) -> tuple[Branch, ...]:
    """Return the inputs of the three guidance branches: text and condition, negative and condition, negative alone."""
    text, negative = (texts[t].to(ctx.device) for t in (video.text, video.negative))
    if not ctx.plan.model.mmdit.cond_embed:
        return ((text.t5, text.clip, None), *[(negative.t5, negative.clip, None)] * 2)
    masks, given = condition(video.cond_type, references, like)
    cond = pack_condition(masks, given, ctx.plan.model.mmdit.patch_size)
    nothing = torch.zeros_like(cond)
    return (
        (text.t5, text.clip, cond),
        (negative.t5, negative.clip, cond),
        (negative.t5, negative.clip, nothing),
    )
