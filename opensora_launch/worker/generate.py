"""Make the videos of a rank's batches, phase by phase: encode references, denoise, decode, save."""

from collections.abc import Iterable, Mapping, Sequence

from opensora_launch.parallel.sharded_model import ShardedModel
from opensora_launch.plan.plan import VideoRequest
from opensora_launch.worker.context import RankContext
from opensora_launch.worker.decode_videos import decode_video
from opensora_launch.worker.denoise_videos import denoise_videos
from opensora_launch.worker.encode_references import encode_references
from opensora_launch.worker.encode_texts import Embedding
from opensora_launch.worker.load_networks import Networks
from opensora_launch.worker.save_videos import save_with_record


def make_videos(
    ctx: RankContext,
    networks: Networks,
    model: ShardedModel,
    texts: Mapping[str, Embedding],
    batches: Iterable[Sequence[VideoRequest]],
) -> list[str]:
    """Make these videos, one batch after another, and return their names. Raises Preempted when asked to stop."""
    done: list[str] = []
    for videos in batches:
        ctx.recorder.heartbeat.at_once = len(videos)
        references = [encode_references(ctx, networks.vae, video) for video in videos]
        latents = denoise_videos(ctx, model, texts, videos, references)
        if networks.blocks:
            networks.blocks.release()  # room for the VAE
        for video, latent in zip(videos, latents, strict=True):
            frames = decode_video(ctx, networks.vae, video, latent)
            if frames is not None:
                save_with_record(ctx, video, frames, texts[video.text].cut)
            done.append(video.name)
        if ctx.checkpoints:
            ctx.checkpoints.drop(videos[0].name)
    return done
