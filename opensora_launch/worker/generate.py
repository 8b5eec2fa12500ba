"""Make the videos of a rank's batches, phase by phase: encode references, denoise, decode, save."""

import logging
from collections.abc import Iterable, Mapping, Sequence

from torch import Tensor

from opensora_launch.model.text_encoders import Embedding
from opensora_launch.parallel.sharded_model import ShardedModel
from opensora_launch.plan.plan import VideoRequest
from opensora_launch.runs.finished_videos import record_failed
from opensora_launch.worker.context import RankContext
from opensora_launch.worker.decode_videos import decode_video
from opensora_launch.worker.denoise_videos import denoise_videos
from opensora_launch.worker.encode_references import encode_references
from opensora_launch.worker.failures import VideoFailed
from opensora_launch.worker.load_networks import Networks
from opensora_launch.worker.save_videos import early_video, save_with_record

log = logging.getLogger("opensora_launch.worker")


def make_videos(
    ctx: RankContext,
    networks: Networks,
    model: ShardedModel,
    texts: Mapping[str, Embedding],
    batches: Iterable[Sequence[VideoRequest]],
) -> list[str]:
    """Make these videos, one batch after another, and return the names of those that did not fail.

    A video that fails is recorded, and the others are made. Raises Preempted when asked to stop.
    """
    done: list[str] = []
    for asked in batches:
        ctx.recorder.heartbeat.at_once = len(asked)
        references = _encode_all(ctx, networks, asked)
        videos = [video for video in asked if video.name in references]
        if not videos:
            continue
        latents = denoise_videos(ctx, model, texts, videos, [references[video.name] for video in videos])
        if networks.blocks:
            networks.blocks.release()  # room for the VAE
        for video, latent in zip(videos, latents, strict=True):
            with early_video(ctx, video) as file:
                try:
                    frames = decode_video(ctx, networks.vae, video, latent, file.ready)
                except VideoFailed as error:  # for its pixels only on the group's first rank, where they are
                    _record(ctx, video, error)
                    continue
                if frames is not None:
                    save_with_record(ctx, video, file, frames, texts[video.text].cut)
            done.append(video.name)
        if ctx.checkpoints:
            ctx.checkpoints.drop(videos[0].name)
    return done


def _encode_all(ctx: RankContext, networks: Networks, videos: Sequence[VideoRequest]) -> dict[str, list[Tensor]]:
    """Return the latents of each video's references, without those that failed; the same on every rank of the group."""
    encoded = {}
    for video in videos:
        try:
            encoded[video.name] = encode_references(ctx, networks.vae, video)
        except VideoFailed as error:
            _record(ctx, video, error)
    return encoded


def _record(ctx: RankContext, video: VideoRequest, error: VideoFailed) -> None:
    log.error("%s failed: %s", video.name, error)
    if ctx.mesh.video.index == 0:
        record_failed(ctx.run_dir, {video.name: str(error)})
