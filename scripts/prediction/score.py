"""Predict measurements that the constants were not fitted to, and compute the errors."""

import statistics
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from prediction.fit import Fitted, fit, predict
from prediction.published import Measurement, twins

ORDER_MARGIN = 1.10  # the order of layouts with closer times does not count
PROTOCOLS = ("table", "largest", "program")


@dataclass(frozen=True)
class Scored:
    """Hold a measurement with its predicted seconds: from the fit to all measurements, and from fits without it.

    `table`: its table was left out. `largest`: it has the most GPUs of its table, and these were left out.
    `program`: everything of its program on its card was left out. None if the protocol does not apply.
    """

    row: Measurement
    all_rows: float
    table: float | None = None
    largest: float | None = None
    program: float | None = None
    twin: str = ""  # another table with the same measurement; then this one is neither fitted nor scored

    def error(self, protocol: str) -> float | None:
        """Return (predicted - published) / published."""
        predicted = getattr(self, protocol)
        return None if predicted is None else predicted / self.row.seconds - 1


def score(
    rows: Sequence[Measurement], more: Sequence[Measurement] = (), protocols: Iterable[str] = PROTOCOLS
) -> list[Scored]:
    """Score `rows`. `more` are measurements of other tables that only take part in the fit."""
    copies = twins([*rows, *more])
    own = [row for row in rows if row.index not in copies]
    known = [*own, *(row for row in more if row.index not in copies)]
    everything = fit(known)
    asked = set(protocols)
    tables = _left_out(own, known, lambda row: row.table, everything) if "table" in asked else {}
    programs = (
        _left_out(own, known, lambda row: f"{row.program} {row.card.name}", everything) if "program" in asked else {}
    )
    largest = _largest(own, known, everything) if "largest" in asked else {}
    return [
        Scored(
            row,
            predict(row, everything),
            tables.get(row.index),
            largest.get(row.index),
            programs.get(row.index),
            copies.get(row.index, ""),
        )
        for row in rows
    ]


def _left_out(
    own: Sequence[Measurement], known: Sequence[Measurement], key: Callable[[Measurement], str], start: Fitted
) -> dict[int, float]:
    """Predict each group of measurements with a fit to all the others."""
    found: dict[int, float] = {}
    for group in dict.fromkeys(map(key, own)):
        fitted = fit([row for row in known if key(row) != group], start)
        found |= {row.index: predict(row, fitted) for row in own if key(row) == group}
    return found


def _largest(own: Sequence[Measurement], known: Sequence[Measurement], start: Fitted) -> dict[int, float]:
    """Predict each table's measurements with the most GPUs, with a fit to all the others."""
    found: dict[int, float] = {}
    for table in dict.fromkeys(row.table for row in own):
        counts = {row.gpus for row in own if row.table == table}
        if len(counts) > 1:
            held = [row for row in own if row.table == table and row.gpus == max(counts)]
            indices = {row.index for row in held}
            fitted = fit([row for row in known if row.index not in indices], start)
            found |= {row.index: predict(row, fitted) for row in held}
    return found


def median_error(scored: Sequence[Scored], link: str, protocols: Sequence[str]) -> float | None:
    """Return the median |error| of all out-of-sample predictions on single-node NVLink, or on PCIe."""
    errors = [
        abs(error)
        for item in scored
        if item.row.link == link and not item.twin and (link != "nvlink" or item.row.nodes == 1)
        for protocol in protocols
        if (error := item.error(protocol)) is not None
    ]
    return statistics.median(errors) if errors else None


@dataclass(frozen=True)
class Pair:
    """Hold two layouts of one table and GPU count, the slower first, and whether the prediction has the same order."""

    slower: Scored
    faster: Scored
    right: bool


def layout_pairs(scored: Sequence[Scored], protocol: str = "table", link: str = "pcie") -> list[Pair]:
    """Return pairs of layouts that differ by more than 10%, with equal program, GPU count and compilation."""
    pairs = []
    usable = [item for item in scored if item.row.link == link and item.error(protocol) is not None]
    for i, a in enumerate(usable):
        for b in usable[:i]:
            same = (a.row.table, a.row.gpus, a.row.compiled) == (b.row.table, b.row.gpus, b.row.compiled)
            slower, faster = (a, b) if a.row.seconds > b.row.seconds else (b, a)
            alike = a.row.layout == b.row.layout
            if same and not alike and slower.row.seconds > ORDER_MARGIN * faster.row.seconds:
                pairs.append(Pair(slower, faster, getattr(slower, protocol) > getattr(faster, protocol)))
    return pairs


def order_share(pairs: Sequence[Pair]) -> float | None:
    return sum(pair.right for pair in pairs) / len(pairs) if pairs else None


def as_json(scored: Sequence[Scored], left_out: Sequence[tuple[int, str]], protocols: Sequence[str]) -> dict[str, Any]:
    """Return what `--json` prints: errors as fractions, null for an absent class."""
    pairs = layout_pairs(scored)
    by_protocol = {
        protocol: {link: median_error(scored, link, [protocol]) for link in ("nvlink", "pcie")}
        for protocol in protocols
    }
    return {
        "median_abs_error": {link: median_error(scored, link, protocols) for link in ("nvlink", "pcie")},
        "layout_order": order_share(pairs),
        "layout_pairs": len(pairs),
        "by_protocol": by_protocol,
        "rows": [
            *(_row_json(item, protocols) for item in scored),
            *({"index": index, "predicted_s": None, "why": why} for index, why in left_out),
        ],
    }


def _row_json(item: Scored, protocols: Sequence[str]) -> dict[str, Any]:
    row = item.row
    predicted = next((value for p in protocols if (value := getattr(item, p)) is not None), item.all_rows)
    return {
        "index": row.index,
        "table": row.table,
        "model": row.model,
        "gpu": row.card.name,
        "link": row.link,
        "n_gpus": row.gpus,
        "layout": vars(row.layout),
        "seconds": row.seconds,
        "predicted_s": predicted,
        "error": predicted / row.seconds - 1,
        "errors": {protocol: item.error(protocol) for protocol in protocols},
        "in_sample_error": item.error("all_rows"),
        "twin_of": item.twin or None,
    }
