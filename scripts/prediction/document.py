"""The tables of docs/prediction.md, between its markers."""

import statistics
from collections.abc import Iterator, Sequence

import yaml

from opensora_launch.cards import default_efficiency
from opensora_launch.config import HardwareConfig, RunConfig, VideoConfig
from opensora_launch.plan.choose import Option, waterfall
from opensora_launch.plan.plan import Machine, VideoRequest, predict
from opensora_launch.plan.rows import Guidance
from opensora_launch.plan.table import short
from prediction.fit import SHARED, Fitted, fit
from prediction.rows import ROOT, Row, catalogue, twins
from prediction.score import PROTOCOLS, Scored, layout_pairs, median_error, order_share

PAGE = ROOT / "docs" / "prediction.md"
AIMS = {"nvlink": 0.07, "pcie": 0.15}
LEFT_OUT = {
    "table": "one table left out",
    "largest": "largest GPU count left out",
    "program": "all of a program on a card left out",
}
OURS = Guidance(50, 7.5, 3.0, True, True, False)
PUBLISHED_OPEN_SORA = {"768px": {1: 1656, 2: 863, 4: 466, 8: 276}, "256px": {1: 60, 2: 40, 4: 34}}


def write_document(scored: Sequence[Scored], rows: Sequence[Row]) -> None:
    """Rewrite what stands between `<!-- NAME -->` and `<!-- end NAME -->`."""
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
    yield f"| aim | {percent(AIMS['nvlink'])} | {percent(AIMS['pcie'])} |"
    for protocol in PROTOCOLS:
        errors = [percent(median_error(scored, link, [protocol])) for link in AIMS]
        yield f"| {LEFT_OUT[protocol]} | {' | '.join(errors)} |"
    both = [percent(median_error(scored, link, PROTOCOLS[:2])) for link in AIMS]
    yield f"| **the first two together** | **{both[0]}** | **{both[1]}** |"
    inside = [percent(median_error(scored, link, ["all_rows"])) for link in AIMS]
    yield f"| for comparison: fitted to all rows, in sample | {' | '.join(inside)} |"
    yield ""
    bar = list(_bar(scored))
    if bar:
        ours, theirs = (statistics.median(abs(pair[i]) for pair in bar) for i in (0, 1))
        yield (
            f"A fit of a + b/N to the smaller counts of a table predicts its largest count within {percent(theirs)} "
            f"(median of {len(bar)} tables with three counts or more); this model within {percent(ours)} on those rows."
        )
        yield ""
    pairs = layout_pairs(scored)
    wrong = [pair for pair in pairs if not pair.right]
    yield (
        f"Layouts over PCIe that differ by more than 10%: {len(pairs) - len(wrong)} of {len(pairs)} pairs in the right "
        f"order ({percent(order_share(pairs))}; aim 90%), each predicted with its table left out."
    )
    for pair in wrong:
        a, b = pair.slower, pair.faster
        yield (
            f"Wrong: {a.row.table}, {a.row.gpus} GPUs: {short(a.row.layout)} {a.row.seconds:g} s published, "
            f"{short(b.row.layout)} {b.row.seconds:g} s."
        )


def _bar(scored: Sequence[Scored]) -> Iterator[tuple[float, float]]:
    """(our error, error of a + b/N) at the largest count of tables with three counts of one kind of layout."""
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


def card_constants(fitted: Fitted, cards: dict[str, HardwareConfig]) -> dict[str, tuple[float, float, float]]:
    """Card -> share of its peak in products and in attention, and of its link, for cards that rows are of."""
    found = {}
    for name, card in cards.items():
        if f"matmul@{name}" in fitted.logs:
            rule = default_efficiency(card.half_tflops)
            link = fitted.value("link:nvlink" if card.nvlink_gb_s else "link:pcie") * fitted.value(f"link@{name}")
            shares = rule * fitted.value(f"matmul@{name}"), rule * fitted.value(f"attention@{name}")
            found[name] = (*shares, link)
    return found


def open_sora() -> Iterator[str]:
    """Published times with their true efficiencies, and what ours are predicted to be."""
    for size, published in PUBLISHED_OPEN_SORA.items():
        yield f"**{size}**, H100, 129 frames, 50 steps:"
        yield ""
        yield from _header("GPUs, published s, efficiency, ours predicted s, efficiency, faster, layouts, GiB a GPU")
        options = {n: ours(size, n) for n in (1, 2, 4, 8)}
        for n, option in options.items():
            old = published.get(n)
            layouts = ", ".join(short(layout) for _, layout in reversed(option.layouts))
            before = f"{old} | {percent(published[1] / (n * old))}" if old else " | "
            faster = f"{old / option.phases.making:.2f}x" if old else ""
            predicted, peak = option.phases.making, option.memory.peak / 2**30
            efficiency = percent(option.efficiency)
            yield f"| {n} | {before} | {predicted:.0f} | {efficiency} | {faster} | {layouts} | {peak:.1f} |"
        yield ""
        yield from _waterfall(options)


def _header(names: str) -> Iterator[str]:
    yield f"| {' | '.join(names.split(', '))} |"
    yield "|---" * len(names.split(", ")) + "|"


def _waterfall(options: dict[int, Option]) -> Iterator[str]:
    names = [name for name, _ in waterfall(options[8], options[1])]
    yield "Where the GPU-seconds go that n GPUs take more than one (predicted): they add up to n t(n) - t(1)."
    yield ""
    yield f"| GPUs | {' | '.join(names)} | sum |"
    yield "|---" * (len(names) + 2) + "|"
    for n in (2, 4, 8):
        parts = [value for _, value in waterfall(options[n], options[1])]
        yield f"| {n} | {' | '.join(f'{value:.1f}' for value in parts)} | {sum(parts):.1f} |"
    yield ""


def ours(size: str, gpus: int) -> Option:
    """The best layout of the shipped settings on H100s, one text-to-video."""
    values = yaml.safe_load((ROOT / "configs" / "hardware" / "h100_sxm.yaml").read_text())
    run = RunConfig(video=VideoConfig(size), hardware=HardwareConfig(**values))
    video = VideoRequest("0000_0", "", "a", "", (), "t2v", 0, OURS)
    return predict(run, Machine("cuda", 1, gpus, 8), [video])[1][0]


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
    layout = short(row.layout)
    said = {True: "yes", False: "no", None: ""}[row.compiled]
    start = f"| {row.gpus} | {layout} | {said} | {row.seconds:g} |"
    if item.twin:
        return f"{start} the same measurement as in {item.twin} | | | | |"
    errors = [percent(item.error(protocol), sign=True) for protocol in (*PROTOCOLS, "all_rows")]
    return f"{start} {item.table:.4g} | {' | '.join(errors)} |"
