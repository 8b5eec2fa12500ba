"""How much of a video's time comes after its denoising steps, before anything is measured."""

from opensora_launch.plan.costs import row_work
from opensora_launch.plan.networks import VAES, network_of
from opensora_launch.plan.plan import Plan, rows_per_step
from opensora_launch.plan.times import VAE_EFFICIENCY
from opensora_launch.plan.video_size import busiest_pixels, video_size
from opensora_launch.schema.autoencoder import VaeKind
from opensora_launch.schema.cards import EFFICIENCY

_WIDTH = 128  # channels of the first stage of the VAEs whose FLOPs are counted: at full size, it has most of them


def share_after_denoising(plan: Plan) -> float:
    """The share of a video's time that its VAE takes, by FLOPs: 0 to 1.

    A GPU computes the VAE's convolutions at a lower rate than products; a CPU at the same one. The ranks of a video
    divide the steps evenly.
    """
    shape, net, vae = plan.geometry, network_of(plan.model), plan.model.vae
    ranks = plan.machine.ranks / plan.dp
    row = row_work(net, shape.grid)
    rows = sum(sum(rows_per_step(v, shape.latent_frames, plan.sampling.prune_rows)) for v in plan.videos)
    size = video_size(shape, vae)
    slower = EFFICIENCY / VAE_EFFICIENCY if plan.machine.device == "cuda" else 1.0
    width = (vae.dc_ae.widths if vae.kind is VaeKind.dc_ae else vae.block_out_channels)[0] / _WIDTH
    decode = busiest_pixels(size, round(ranks)) * VAES[net.vae].equal_flops * width**2 * slower
    return decode / (decode + rows / len(plan.videos) * row.flops / ranks)
