"""Decide whether compiling the transformer's blocks saves more time than it takes. Pure."""

from opensora_launch.plan.costs import elementwise_bytes
from opensora_launch.plan.times import MEMORY_EFFICIENCY
from opensora_launch.plan.workload import Workload
from opensora_launch.schema.config import Engine, RunConfig
from opensora_launch.schema.kernel_kinds import Compile

COMPILE_S = 20.0  # assumed: both kinds of blocks on a GPU, with nothing kept from an earlier run


def compile_choice(run: RunConfig, work: Workload, device: str) -> Compile:
    """Resolve `auto`: it stays where compiling pays, and then happens if every rank can."""
    if run.compile is not Compile.auto:
        return run.compile
    if device != "cuda" or run.engine is not Engine.native or not run.hardware.known:
        return Compile.off
    return Compile.auto if saved_s(work) > COMPILE_S else Compile.off


def saved_s(work: Workload) -> float:
    """Return the seconds by which compiled blocks shorten all steps, if the ranks share them evenly."""
    eager, compiled = (
        elementwise_bytes(work.net, work.grid.total_tokens, element_bytes=work.element_bytes, compiled=way)
        for way in (False, True)
    )
    rows = work.batches * sum(rows * count for rows, count in work.steps)
    slowest = min(card.bandwidth_gb_s for card in work.card.each) * 1e9 * MEMORY_EFFICIENCY
    return rows * (eager - compiled) / slowest / work.ranks


def compile_problems(run: RunConfig) -> list[str]:
    """Return why compile=on cannot be honoured."""
    if run.compile is not Compile.on:
        return []
    if run.engine is not Engine.native:
        return [f"compile=on: engine={run.engine.value} is not compiled; use engine=native, or compile=auto"]
    if (run.layout.tp or 1) > 1:
        return ["compile=on: weights divided by layout.tp are not compiled; use layout.tp=1, or compile=auto"]
    return []
