"""The subject of an estimate: a run that is counted and predicted, or the figures of a document. Pure."""

from collections.abc import Iterator
from dataclasses import replace

from opensora_launch.errors import UserError
from opensora_launch.estimate.card_ranking import running_of, video_flops
from opensora_launch.estimate.cost import SECONDS_PER_HOUR, cost_of, cost_of_flops, flops_of_steps
from opensora_launch.estimate.figures import Figure, Subject
from opensora_launch.plan.choose import Option, options, ways_to_fit
from opensora_launch.plan.costs import row_work
from opensora_launch.plan.fit import fit_problems
from opensora_launch.plan.image_stage import after_images, image_fit_problems
from opensora_launch.plan.placement import as_overrides
from opensora_launch.plan.workload import Workload
from opensora_launch.schema.cards import Card
from opensora_launch.schema.config import LayoutConfig
from opensora_launch.schema.prices import EstimateConfig


def document_subject(card: Card, prices: EstimateConfig) -> Subject:
    """Describe an output by `flops_per_step` and `num_steps`, at `flops_per_s` or at the card's dense peak."""
    assert prices.flops_per_step is not None and prices.num_steps and prices.output_s is not None
    peak = card.half_tflops * 1e12
    rate = prices.flops_per_s or peak
    if rate > peak:
        line = f"estimate.flops_per_s={rate:.4g} is above the peak of {card.name}, {peak:.4g}; null takes the peak"
        raise UserError("this cannot be estimated", [line])
    flops = flops_of_steps(prices.flops_per_step, prices.num_steps)
    # a document's figures are about GPUs only
    bare = replace(prices, cpu_w=0.0, other_w=0.0, cpu_usd=0.0, memory_usd=0.0, storage_usd=0.0, other_usd=0.0)
    running = running_of(card, 1, rate, bare)
    one = "video" if prices.output_s else "image"
    work = (
        Figure("flops_per_step", "FLOPs per step", prices.flops_per_step, "FLOP", "estimate.flops_per_step"),
        Figure("flops", f"FLOPs per {one}", flops, "FLOP", f"{prices.flops_per_step:.4g} x {prices.num_steps} steps"),
    )
    cost, how = cost_of_flops(flops, running), f"FLOPs / {rate:.4g} FLOP/s"
    return Subject(work=work, output_s=prices.output_s, cost=cost, running=running, rate=how)


def counted_subject(work: Workload, fixed: LayoutConfig, prices: EstimateConfig, fps: int) -> Subject:
    """Describe the run's model and video on its machine, in the best layout that fits; UserError if none fits."""
    if lines := image_fit_problems(work):
        raise UserError("this video does not fit", lines)
    found = options(work, fixed)
    fitting = found[:1] if found[0].fits else ways_to_fit(work, fixed)[:1]
    if not fitting:
        raise UserError("this video does not fit", fit_problems(work, fixed, found))
    (best,) = after_images(work, fitting)
    flops = video_flops(work)
    gpu_hours = best.making * work.ranks / SECONDS_PER_HOUR
    reached = flops / (gpu_hours * SECONDS_PER_HOUR)
    running = running_of(work.card, work.gpus_per_node, reached, prices)
    return Subject(
        work=tuple(_counted(work, best, flops, reached)),
        output_s=work.video.num_frames / fps if work.video.num_frames > 1 else 0.0,
        cost=cost_of(gpu_hours, flops, running),
        running=running,
        rate=f"{work.ranks} x {best.making:.1f} s predicted",
    )


def _counted(work: Workload, best: Option, flops: float, reached: float) -> Iterator[Figure]:
    size, row = work.video, row_work(work.net, work.grid)
    rows = sum(rows * count for rows, count in work.steps)
    steps = sum(count for _, count in work.steps)
    where = f"{size.width_px} x {size.height_px}, {size.length}"
    yield Figure("model", "model", work.net.name, "", where)
    how = f"{work.grid.latent_frames} x {work.grid.tokens_per_frame} video + {work.grid.text_tokens} text"
    yield Figure("tokens", "tokens", work.grid.total_tokens, "", how)
    share = f"{row.attention_share:.0%} of that is attention"
    yield Figure("flops_per_row", "FLOPs per row and step", row.flops, "FLOP", share)
    yield Figure("row_forwards", "row-forwards", rows, "", f"in {steps} steps")
    made, more = "image" if size.num_frames == 1 else "video", " and the first frame" if work.images else ""
    yield Figure("flops", f"FLOPs per {made}", flops, "FLOP", f"{row.flops:.3e} x {rows}{more}")
    if images := work.images:
        of_image = f"{images.net.name}, {images.video.width_px} x {images.video.height_px}; in the FLOPs above"
        yield Figure("image_flops", "FLOPs of the first frame", video_flops(images), "FLOP", of_image)
    placed = as_overrides(best.placement) if best.placement.streamed else ""
    yield Figure("layout", f"{work.ranks} x {work.card.name}", str(best.layout), "", placed)
    peak = (work.card.tflops(work.products) or 0.0) * 1e12
    how = f"{reached / 1e12:.0f} of {peak / 1e12:.0f} TFLOP/s in {work.products}, including the VAE's time"
    yield Figure("peak_share", "share of the peak reached", reached / peak, "share", how)
