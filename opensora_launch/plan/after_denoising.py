"""How much of a video's time comes after its denoising steps, before anything is measured."""

from opensora_launch.plan.costs import row_work
from opensora_launch.plan.memory import VideoSize
from opensora_launch.plan.networks import VAES, TokenGrid, network_of
from opensora_launch.plan.plan import Plan, rows_per_step
from opensora_launch.plan.times import VAE_EFFICIENCY
from opensora_launch.schema.cards import EFFICIENCY

_WIDTH = 128  # channels of the first block of the VAE whose FLOPs are counted: at full size, it has most of them


def share_after_denoising(plan: Plan) -> float:
    """The share of a video's time that its VAE takes, by FLOPs: 0 to 1.

    A GPU computes the VAE's convolutions at a lower rate than products; a CPU at the same one. The ranks of a video
    divide the steps evenly, and the tiles one by one.
    """
    g, vae = plan.geometry, plan.model.vae
    ranks = plan.machine.ranks / plan.dp
    row = row_work(
        network_of(plan.model.mmdit, g.text_tokens), TokenGrid(g.latent_frames, g.tokens_per_frame, g.text_tokens)
    )
    rows = sum(sum(rows_per_step(v, g.latent_frames, plan.sampling.prune_rows)) for v in plan.videos) / len(plan.videos)
    size = VideoSize(g.width_px, g.height_px, g.num_frames, vae.tile_px, vae.tile_frames)
    tiles = -(-size.tiles // ranks)
    slower = EFFICIENCY / VAE_EFFICIENCY if plan.machine.device == "cuda" else 1.0
    width = (vae.block_out_channels[0] / _WIDTH) ** 2
    decode = tiles * size.tile_pixels * VAES["hunyuan"].flops * width * slower
    return decode / (decode + rows * row.flops / ranks)
