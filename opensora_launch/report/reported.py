"""Findings that the ranks reported themselves: damaged weights, and attention kernels that do not work."""

from collections.abc import Iterator, Sequence

from opensora_launch.report.wording import Message, message
from opensora_launch.telemetry.events import Meta, RankEvents


def reported_findings(ranks: Sequence[RankEvents]) -> Iterator[Message]:
    """Yield constant_weights and kernel_refused, with the fields of every finding."""
    damaged = [(constant, events.meta) for events in ranks for constant in events.constant]
    for file in dict.fromkeys(constant.file for constant, _ in damaged):
        names = {name for constant, _ in damaged if constant.file == file for name in constant.names}
        where = _where([meta for constant, meta in damaged if constant.file == file])
        yield message("constant_weights", file=file, count=len(names), example=min(names), **where)
    refused = [(line, events.meta) for events in ranks for line in events.meta.attention_refused]
    for line in dict.fromkeys(line for line, _ in refused):
        yield message("kernel_refused", why=line, **_where([meta for found, meta in refused if found == line]))


def _where(ranks: Sequence[Meta]) -> Message:
    hosts = ", ".join(sorted({meta.host for meta in ranks}))
    return {"ranks": sorted({meta.rank for meta in ranks}), "host": hosts, "gpu": None, "seconds": None}
