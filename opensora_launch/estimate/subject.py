"""What `estimate` reckons with: a run that is counted and predicted, or the figures of a document. Pure."""

from collections.abc import Iterator
from dataclasses import replace

from opensora_launch.errors import UserError
from opensora_launch.estimate.cost import SECONDS_PER_HOUR, cost_of, cost_of_flops, flops_of_steps
from opensora_launch.estimate.per_card import build_of, has_price, running_of, video_flops
from opensora_launch.estimate.topics import Line, Subject
from opensora_launch.plan.choose import Option, options, ways_to_fit
from opensora_launch.plan.costs import row_work
from opensora_launch.plan.fit import fit_problems
from opensora_launch.plan.placement import as_overrides
from opensora_launch.plan.work import Work
from opensora_launch.schema.config import EstimateConfig, HardwareConfig, LayoutConfig


def document_subject(card: HardwareConfig, prices: EstimateConfig) -> Subject:
    """An output of `flops_per_step` and `num_steps`, at `flops_per_s` or at the card's dense peak."""
    assert prices.flops_per_step is not None and prices.num_steps and prices.output_s is not None
    rate = prices.flops_per_s or card.half_tflops * 1e12
    flops = flops_of_steps(prices.flops_per_step, prices.num_steps)
    machine = build_of(card, 1, replace_host_by_none(prices))
    running = running_of(machine, rate, prices, priced=has_price(card, prices))
    one = "a video" if prices.output_s else "an image"
    work = (
        Line("flops_per_step", "FLOPs a step", prices.flops_per_step, "FLOP", "estimate.flops_per_step"),
        Line("flops", f"FLOPs {one}", flops, "FLOP", f"{prices.flops_per_step:.4g} x {prices.num_steps} steps"),
    )
    return Subject(
        name="document",
        work=work,
        output_s=prices.output_s,
        cost=cost_of_flops(flops, running),
        running=running,
        card=str(card.name),
        rate=f"FLOPs / {rate:.4g} FLOP/s",
    )


def counted_subject(work: Work, fixed: LayoutConfig, prices: EstimateConfig, fps: int) -> Subject:
    """The run's own model and video on its machine, in the best layout that fits. UserError where none does."""
    found = options(work, fixed)
    best = found[0] if found[0].fits else next(iter(ways_to_fit(work, fixed)), None)
    if best is None:
        raise UserError("this video does not fit", fit_problems(work, fixed, found))
    machine = build_of(work.card, work.gpus_per_node, prices)
    flops = video_flops(work)
    gpu_hours = best.phases.making * work.ranks / SECONDS_PER_HOUR
    reached = flops / (gpu_hours * SECONDS_PER_HOUR)
    running = running_of(machine, prices.flops_per_s or reached, prices, priced=has_price(work.card, prices))
    return Subject(
        name=work.net.name,
        work=tuple(_counted(work, best, flops, reached)),
        output_s=work.video.num_frames / fps,
        cost=cost_of(gpu_hours, flops, running),
        running=running,
        card=str(work.card.name),
        rate=f"{work.ranks} x {best.phases.making:.1f} s predicted",
    )


def replace_host_by_none(prices: EstimateConfig) -> EstimateConfig:
    """A document speaks of GPUs alone: no CPU, no other parts."""
    return replace(prices, cpu_w=0.0, other_w=0.0, cpu_usd=0.0, memory_usd=0.0, storage_usd=0.0, other_usd=0.0)


def _counted(work: Work, best: Option, flops: float, reached: float) -> Iterator[Line]:
    size, row = work.video, row_work(work.net, work.shape)
    rows = sum(rows * count for rows, count in work.steps)
    steps = sum(count for _, count in work.steps)
    where = f"{size.width_px} x {size.height_px}, {size.num_frames} frames"
    yield Line("model", "model", work.net.name, "", where)
    how = f"{work.shape.latent_frames} x {work.shape.tokens_per_frame} video + {work.shape.text_tokens} text"
    yield Line("tokens", "tokens", work.shape.video_tokens + work.shape.text_tokens, "", how)
    share = f"{row.attention_share:.0%} of it attention"
    yield Line("flops_per_row", "FLOPs a row and step", row.flops, "FLOP", share)
    yield Line("row_forwards", "row-forwards", rows, "", f"of {steps} steps")
    yield Line("flops", "FLOPs a video", flops, "FLOP", f"{row.flops:.3e} x {rows}")
    placed = as_overrides(best.placement) if best.placement.streamed else ""
    yield Line("layout", f"{work.ranks} x {work.card.name}", str(best.layout), "", placed)
    peak = work.card.half_tflops * 1e12
    how = f"{reached / 1e12:.0f} of {peak / 1e12:.0f} TFLOP/s, the VAE's time included"
    yield Line("peak_share", "share of the peak reached", reached / peak, "share", how)
