"""Write the tables of docs/prediction.md between its markers."""

import statistics
from collections.abc import Iterator, Sequence
from dataclasses import replace

import yaml

from opensora_launch.estimate.card_ranking import video_flops
from opensora_launch.plan.choose import Option
from opensora_launch.plan.make_plan import predict
from opensora_launch.plan.plan import Machine, VideoRequest
from opensora_launch.plan.rows import Guidance
from opensora_launch.plan.table import layout_text
from opensora_launch.plan.times import rates_of
from opensora_launch.plan.workload import Workload
from opensora_launch.schema.cards import Card, default_efficiency
from opensora_launch.schema.config import RunConfig, VideoConfig
from opensora_launch.schema.tile_shares import deal_tiles
from prediction.fit import SHARED, Fitted, chip_of, fit, link_card
from prediction.published import ROOT, Measurement, catalogue, twins
from prediction.score import PROTOCOLS, Scored, layout_pairs, median_error, order_share

PAGE = ROOT / "docs" / "prediction.md"
AIMS = {"nvlink": 0.07, "pcie": 0.15}
LEFT_OUT = {
    "table": "one table left out",
    "largest": "largest GPU count of a table left out",
    "program": "everything of a program on a card left out",
}
OURS = Guidance(50, 7.5, 3.0, True, True, False)
# The design's own targets for 768px on H100s, compared with the published times.
AIM_SECONDS, AIM_FASTER, AIM_EFFICIENCY, AIM_TFLOPS = 110, 2.0, 0.95, 500
PUBLISHED_OPEN_SORA = {"768px": {1: 1656, 2: 863, 4: 466, 8: 276}, "256px": {1: 60, 2: 40, 4: 34}}


def write_document(scored: Sequence[Scored], rows: Sequence[Measurement]) -> None:
    """Rewrite the text between `<!-- NAME -->` and `<!-- end NAME -->`."""
    copies = twins(rows)
    fitted = fit([row for row in rows if row.index not in copies])
    parts = {
        "summary": summary(scored),
        "constants": constants(fitted),
        "open-sora": open_sora(),
        "rows": every_row(scored),
    }
    text = PAGE.read_text(encoding="utf-8")
    for name, lines in parts.items():
        start, end = f"<!-- {name} -->\n", f"<!-- end {name} -->"
        head, _, rest = text.partition(start)
        text = head + start + "\n".join(lines) + "\n" + end + rest.partition(end)[2]
    PAGE.write_text(text, encoding="utf-8")


def percent(value: float | None, sign: bool = False) -> str:
    return "" if value is None else f"{value:+.1%}" if sign else f"{value:.1%}"


def summary(scored: Sequence[Scored]) -> Iterator[str]:
    yield "| median of abs(error), out of sample | NVLink, one node | PCIe |"
    yield "|---|---|---|"
    yield f"| target | {percent(AIMS['nvlink'])} | {percent(AIMS['pcie'])} |"
    for protocol in PROTOCOLS:
        errors = [percent(median_error(scored, link, [protocol])) for link in AIMS]
        yield f"| {LEFT_OUT[protocol]} | {' | '.join(errors)} |"
    both = [percent(median_error(scored, link, PROTOCOLS[:2])) for link in AIMS]
    yield f"| **the first two together** | **{both[0]}** | **{both[1]}** |"
    inside = [percent(median_error(scored, link, ["all_rows"])) for link in AIMS]
    yield f"| for comparison: fitted to all measurements, in sample | {' | '.join(inside)} |"
    yield ""
    bar = list(_bar(scored))
    if bar:
        ours, theirs = (statistics.median(abs(pair[i]) for pair in bar) for i in (0, 1))
        yield (
            f"A fit of a + b/N to the smaller counts of a table predicts its largest count within {percent(theirs)} "
            f"(median of {len(bar)} tables with three or more counts). On the same measurements, this model is within "
            f"{percent(ours)}."
        )
        yield ""
    pairs = layout_pairs(scored)
    wrong = [pair for pair in pairs if not pair.right]
    yield (
        f"Of {len(pairs)} pairs of layouts over PCIe that differ by more than 10%, {len(pairs) - len(wrong)} are in "
        f"the right order ({percent(order_share(pairs))}; target 90%), each predicted with its table left out."
    )
    for pair in wrong:
        a, b = pair.slower, pair.faster
        yield (
            f"In the wrong order: {a.row.table}, {a.row.gpus} GPUs: {layout_text(a.row.layout)} takes "
            f"{a.row.seconds:g} s and {layout_text(b.row.layout)} {b.row.seconds:g} s (published)."
        )


def _bar(scored: Sequence[Scored]) -> Iterator[tuple[float, float]]:
    """Yield (our error, error of a + b/N) at the largest count of each table with three counts or more."""
    for table in dict.fromkeys(item.row.table for item in scored):
        mine = [item for item in scored if item.row.table == table and not item.twin and not item.row.compiled]
        best: dict[int, Scored] = {}
        for item in sorted(mine, key=lambda item: item.row.seconds):
            best.setdefault(item.row.gpus, item)
        counts = sorted(best)
        if len(counts) < 3:
            continue
        last, few = best[counts[-1]], counts[:-1]
        if last.largest is None:
            continue
        x, y = [1 / n for n in few], [best[n].row.seconds for n in few]
        mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
        slope = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y, strict=True)) / sum((a - mean_x) ** 2 for a in x)
        guess = mean_y + slope * (1 / counts[-1] - mean_x)
        yield last.largest / last.row.seconds - 1, guess / last.row.seconds - 1


def constants(fitted: Fitted) -> Iterator[str]:
    yield "| card | products | attention | link |"
    yield "|---|---|---|---|"
    cards = catalogue()
    for name, values in card_constants(fitted, cards).items():
        yield f"| {name} | {' | '.join(f'{value:.3f}' for value in values)} |"
    yield ""
    yield "| for all cards | fitted | before any fit |"
    yield "|---|---|---|"
    for name, (mean, _) in SHARED.items():
        yield f"| {name} | {fitted.value(name):.3g} | {mean:g} |"


def card_constants(fitted: Fitted, cards: dict[str, Card]) -> dict[str, tuple[float, float, float]]:
    """Return, for each card with measurements, the shares of its peak in products and in attention, and of its link."""
    found = {}
    for name, card in cards.items():
        chip = chip_of(name)
        if f"matmul@{chip}" in fitted.logs:
            rule = default_efficiency(card.half_tflops)
            link = fitted.value("link:nvlink" if card.nvlink_gb_s else "link:pcie") * fitted.value(
                f"link@{link_card(name)}"
            )
            shares = rule * fitted.value(f"matmul@{chip}"), rule * fitted.value(f"attention@{chip}")
            found[name] = (*shares, link)
    return found


def open_sora() -> Iterator[str]:
    """Yield the published times with their true efficiencies, and our predicted ones."""
    for size, published in PUBLISHED_OPEN_SORA.items():
        yield f"**{size}**, H100, 129 frames, 50 steps:"
        yield ""
        yield from _header("GPUs, published s, efficiency, ours predicted s, efficiency, faster, layouts, GiB per GPU")
        options = {n: ours(size, n) for n in (1, 2, 4, 8)}
        for n, option in options.items():
            old = published.get(n)
            layouts = ", ".join(layout_text(layout) for _, layout in reversed(option.layouts))
            before = f"{old} | {percent(published[1] / (n * old))}" if old else " | "
            faster = f"{old / option.phases.making:.2f}x" if old else ""
            predicted, peak = option.phases.making, option.memory.peak / 2**30
            efficiency = percent(option.efficiency)
            yield f"| {n} | {before} | {predicted:.0f} | {efficiency} | {faster} | {layouts} | {peak:.1f} |"
        yield ""
        if size == "768px":
            yield from _aims(options, published)
        yield from _waterfall(options)


def _aims(options: dict[int, Option], published: dict[int, int]) -> Iterator[str]:
    """Yield by how much the design's targets are missed, and why: the effect of row-forwards, kernels and links."""
    making = {n: option.phases.making for n, option in options.items()}
    faster = {n: published[n] / making[n] for n in (1, 2, 4)}
    efficiency = options[8].efficiency
    yield f"The design has these targets, at {AIM_TFLOPS} TFLOP/s per GPU and with the weights loaded:"
    yield ""
    over = making[8] / AIM_SECONDS - 1
    yield f"* under {AIM_SECONDS} s on 8: {making[8]:.0f} s predicted, {_missed(over)};"
    each = ", ".join(f"{value:.2f}x on {n} ({_missed(1 - value / AIM_FASTER)})" for n, value in faster.items())
    yield f"* {AIM_FASTER:g}x the published time on 1, 2 and 4: {each};"
    lacking = AIM_EFFICIENCY - efficiency
    yield f"* efficiency above {percent(AIM_EFFICIENCY)} on 8: {percent(efficiency)}, {_missed(lacking, ' points')}."
    yield ""
    work, (alone, *_) = _planned("768px", 1)
    reached = video_flops(work) / alone.phases.denoise / 1e12
    scale = AIM_TFLOPS / reached
    quick = {n: _planned("768px", n, scale)[1][0] for n in (1, 2, 4, 8)}
    gains = ", ".join(f"{published[n] / quick[n].phases.making:.2f}x" for n in (1, 2, 4))
    rows = sum(rows * count for rows, count in work.steps)
    lost = sorted(waterfall(options[8], options[1]), key=lambda part: -part[1])[:3]
    causes = ", ".join(f"{name} {value:.0f}" for name, value in lost)
    link = rates_of(work.card, work.topology, work.products).link_bytes / 1e9
    yield (
        f"Why: {rows} row-forwards instead of 150 make denoising {150 / rows:.2f}x as fast, at the published program's "
        f"own speed. They do not shorten VAE and saving, which take {making[1] - alone.phases.denoise:.0f} s of one "
        f"GPU's {making[1]:.0f} s. The constants of the H100 are those of published programs, whose kernels reach "
        f"{reached:.0f} TFLOP/s in these shapes. At {AIM_TFLOPS}, which the best published run on one GPU reaches, the "
        f"prediction is {quick[8].phases.making:.0f} s on 8 at {percent(quick[8].efficiency)}, and {gains} on 1, 2 and "
        f"4. On 8 GPUs the largest losses are {causes} GPU-seconds (see the table below). The published tables show "
        f"links of {link:.0f} of the H100's {work.card.nvlink_gb_s:.0f} GB/s. At that speed, steps of two guidance "
        f"rows are fastest as {layout_text(options[8].layout)}, whose partial results cost compute. Of "
        f"the VAE's tiles, the busiest of 8 ranks decodes {deal_tiles(work.video.cut, 8).busiest:.2f} of the mean."
    )
    yield ""


def _missed(share: float, unit: str = "%") -> str:
    return f"missed by {100 * share:.1f}{unit}" if share > 0 else "reached"


def _header(names: str) -> Iterator[str]:
    yield f"| {' | '.join(names.split(', '))} |"
    yield "|---" * len(names.split(", ")) + "|"


def waterfall(option: Option, alone: Option) -> Iterator[tuple[str, float]]:
    """GPU-seconds lost against one GPU of unlimited memory, by cause. They add up to n t(n) - t(1)."""
    for name in ("ulysses", "ring", "tensor", "gather", "launch", "vae", "save", "compute"):
        yield name, option.layout.ranks * getattr(option.phases, name) - getattr(alone.phases, name)


def _waterfall(options: dict[int, Option]) -> Iterator[str]:
    names = [name for name, _ in waterfall(options[8], options[1])]
    yield "GPU-seconds that n GPUs use in addition to one GPU, by cause (predicted). They add up to n t(n) - t(1)."
    yield ""
    yield f"| GPUs | {' | '.join(names)} | sum |"
    yield "|---" * (len(names) + 2) + "|"
    for n in (2, 4, 8):
        parts = [value for _, value in waterfall(options[n], options[1])]
        yield f"| {n} | {' | '.join(f'{value:.1f}' for value in parts)} | {sum(parts):.1f} |"
    yield ""


def ours(size: str, gpus: int) -> Option:
    """Return the best layout for one text-to-video with the shipped settings on H100s."""
    return _planned(size, gpus)[1][0]


def _planned(size: str, gpus: int, scale: float = 1.0) -> tuple[Workload, tuple[Option, ...]]:
    """Return the work and all its layouts, with kernels that are `scale` times as fast."""
    card = Card(**yaml.safe_load((ROOT / "configs" / "hardware" / "h100_sxm.yaml").read_text()))
    names = ("matmul_efficiency", "attention_efficiency", "bandwidth_gb_s")
    faster = replace(card, **{name: getattr(card, name) * scale for name in names})
    run = RunConfig(video=VideoConfig(size), hardware=faster)
    video = VideoRequest("0000_0", "", "a", "", (), "t2v", 0, OURS)
    return predict(run, Machine("cuda", 1, gpus, 8), [video])


def every_row(scored: Sequence[Scored]) -> Iterator[str]:
    for table in dict.fromkeys(item.row.table for item in scored):
        mine = [item for item in scored if item.row.table == table]
        first = mine[0].row
        yield f"**{table}**: {first.model}, {first.card.name}, {first.link}"
        yield ""
        yield from _header(
            "GPUs, layout, compiled, published s, predicted s, table left out, largest, program, in sample"
        )
        yield from (_row(item) for item in mine)
        yield ""


def _row(item: Scored) -> str:
    row = item.row
    layout = layout_text(row.layout)
    compiled = {True: "yes", False: "no", None: ""}[row.compiled]
    start = f"| {row.gpus} | {layout} | {compiled} | {row.seconds:g} |"
    if item.twin:
        return f"{start} the same measurement as in {item.twin} | | | | |"
    errors = [percent(item.error(protocol), sign=True) for protocol in (*PROTOCOLS, "all_rows")]
    return f"{start} {item.table:.4g} | {' | '.join(errors)} |"
