"""Pictures of predictions: time by layout, memory by layout, and where the work lies under the roofline."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from opensora_launch.plan.choose import Option
from opensora_launch.plan.costs import row_work
from opensora_launch.plan.memory import GIB
from opensora_launch.plan.table import PHASE_COLUMNS, SHOWN, layout_text
from opensora_launch.plan.times import rates_of
from opensora_launch.plan.workload import Workload


def plot_plan(work: Workload, found: Sequence[Option], file: Path) -> None:
    """Write the picture in the format of the file's suffix."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    shown = list(found[:SHOWN])
    figure, (times, memory, roof) = pyplot.subplots(1, 3, figsize=(16, 1.5 + 0.4 * max(len(shown), 6)))
    names = [layout_text(option.layout) for option in shown]
    left = [0.0] * len(shown)
    for part in PHASE_COLUMNS:
        values = [getattr(option.phases, part) for option in shown]
        times.barh(names, values, left=left, label=part)
        left = [a + b for a, b in zip(left, values, strict=True)]
    times.set_xlabel("predicted seconds, weights loaded")
    times.legend(fontsize="small")
    memory.barh(names, [option.memory.peak / GIB for option in shown])
    memory.axvline(shown[0].limit_bytes / GIB, color="black", linestyle="--", label=work.card.name)
    memory.set_xlabel("peak GiB per GPU")
    memory.legend(fontsize="small")
    for axis in (times, memory):
        axis.invert_yaxis()
    _roofline(roof, work)
    figure.suptitle(f"{work.net.name} on {work.ranks} x {work.card.name}, predicted")
    figure.tight_layout()
    figure.savefig(file)
    pyplot.close(figure)


def _roofline(axis: Any, work: Workload) -> None:
    """FLOP/s against FLOPs per byte that memory moves: the card's two limits, and the parts of a row."""
    rates = rates_of(work.card, work.topology)
    row = row_work(work.net, work.grid)
    peak, bandwidth = work.card.half_tflops * 1e12, work.card.bandwidth_gb_s * 1e9
    steps = [2.0**power for power in range(-2, 15)]
    axis.loglog(steps, [min(peak, x * bandwidth) / 1e12 for x in steps], color="black", label="data sheet")
    traffic = 2.0 * work.net.blocks * row.tokens * 12 * work.net.hidden
    parts = {
        "products": (row.matmul_flops / traffic, rates.matmul_flops),
        "attention": (
            row.attention_flops / (8.0 * work.net.blocks * row.tokens * work.net.hidden),
            rates.attention_flops,
        ),
        "elementwise": (0.5, 0.5 * rates.memory_bytes),
    }
    for name, (intensity, rate) in parts.items():
        axis.plot([min(intensity, steps[-1])], [rate / 1e12], "o", label=name)
    axis.set_xlabel("FLOPs per byte")
    axis.set_ylabel("TFLOP/s")
    axis.legend(fontsize="small")
