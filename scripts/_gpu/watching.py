"""What watching costs a step, and whether the sampler reads what nvidia-smi reads."""

import csv
import io
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any

import torch
from _bench import spread
from torch import Tensor

from _gpu.notes import Notes
from _gpu.setting import SMALL, Setting
from _gpu.transformer import Inputs, Place, join_alone, kernel_of, load_transformer
from opensora_launch.machine.nvml import Gpus, open_gpus
from opensora_launch.model import load_mmdit
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.placement import Placement

ROUNDS, TINY_ROUNDS = 20, 2
READS = 20
BUSY_S, PAUSE_S = 2.0, 1.1  # NVML's slow readings are a second old at most
# nvidia-smi's field -> the sampler's, and what one of the former is in the latter's unit
FIELDS = {
    "memory.used": ("memory_used_bytes", 2**20), "power.draw": ("power_w", 1.0), "clocks.sm": ("sm_mhz", 1.0),
    "clocks.mem": ("memory_mhz", 1.0), "temperature.gpu": ("temperature_c", 1.0), "utilization.gpu": ("util", 0.01),
}  # fmt: skip


def nvml(setting: Setting, notes: Notes) -> None:
    """Read the GPU by both, when it is idle and when it is busy, and time the sampler's reading."""
    notes.point("idle", partial(_both, setting, lambda: None))
    notes.point("busy", lambda: _both(setting, _product(setting)))
    notes.point("cost of a reading", _cost)


def _opened() -> Gpus:
    gpus, why_not = open_gpus()
    if gpus is None:
        raise RuntimeError(f"NVML shows no GPU: {why_not}")
    return gpus


def _both(setting: Setting, work: Callable[[], object]) -> dict[str, Any]:
    """Read by the sampler, by nvidia-smi, and by the sampler again, while the work is repeated."""
    if shutil.which("nvidia-smi") is None:
        raise RuntimeError("nvidia-smi is not on the PATH")
    gpus = _opened()
    try:
        work()
        setting.wait()
        end = time.monotonic() + (0 if setting.tiny else BUSY_S)
        while time.monotonic() < end:
            work()
            setting.wait()
        for _ in range(1 if setting.tiny else 20):
            work()  # runs on while the readings are taken
        before = gpus.sample()[0]
        theirs = smi()
        time.sleep(0 if setting.tiny else PAUSE_S)
        after = gpus.sample()[0]
        setting.wait()
    finally:
        gpus.close()
    return {"fields": compared(theirs, before, after), "refused": gpus.refused()}


def _product(setting: Setting) -> Callable[[], object]:
    side = 64 if setting.tiny else 8192
    a, b = setting.random(side, side), setting.random(side, side)
    return lambda: [a @ b for _ in range(4 if setting.tiny else 40)]


def smi() -> dict[str, float]:
    """Return what nvidia-smi reads of its first GPU; fields that it does not give are missing."""
    query = [f"--query-gpu={','.join(FIELDS)}", "--format=csv,noheader,nounits", "--id=0"]
    done = subprocess.run(["nvidia-smi", *query], capture_output=True, text=True, check=True, timeout=30)
    return smi_values(done.stdout)


def smi_values(text: str) -> dict[str, float]:
    """Read nvidia-smi's line of numbers, in its units."""
    cells = [cell.strip() for cell in next(csv.reader(io.StringIO(text)))]
    found = {}
    for name, cell in zip(FIELDS, cells, strict=True):
        try:
            found[name] = float(cell)
        except ValueError:  # [N/A], [Not Supported]
            continue
    return found


def compared(
    theirs: Mapping[str, float], before: Mapping[str, Any], after: Mapping[str, Any]
) -> dict[str, dict[str, float | None]]:
    """Put nvidia-smi's values beside the sampler's, from before and after, in the sampler's units."""
    return {
        ours: {
            "nvidia_smi": None if theirs.get(field) is None else theirs[field] * unit,
            "before": before.get(ours),
            "after": after.get(ours),
        }
        for field, (ours, unit) in FIELDS.items()
    }


def _cost() -> dict[str, Any]:
    """Time readings of all GPUs, one after another. A thread takes four per second during a run."""
    gpus = _opened()
    wall, cpu = list[float](), list[float]()
    try:
        gpus.sample()
        for _ in range(READS):
            began, used = time.perf_counter(), time.thread_time()
            gpus.sample()
            wall.append(time.perf_counter() - began)
            cpu.append(time.thread_time() - used)
    finally:
        gpus.close()
    return {"gpus": len(gpus.gpus), "wall_s": spread(wall), "cpu_s": spread(cpu)}


def telemetry(setting: Setting, notes: Notes) -> None:
    """Time steps with the worker's recorder, hooks, heartbeat and sampler beside steps without, in one process."""
    notes.point(SMALL, partial(_recorded, setting))


@torch.no_grad()
def _recorded(setting: Setting) -> dict[str, Any]:
    from _recording import costs_of, in_turns, plain, recorded

    join_alone()
    place, model = Place.of(Layout()), setting.model
    first = load_transformer(setting, model, Placement(), place).module
    second = load_mmdit(asdict(model.mmdit), first.state_dict())  # the same weights, for the hooks
    given = _one_row(Inputs.of(setting, model, setting.geometry(SMALL)))
    kernel = kernel_of(setting, model)
    with tempfile.TemporaryDirectory() as folder:
        without = plain(first, kernel, given, setting.wait)
        watched, recorder = recorded(second, kernel, given, Path(folder), setting.wait)
        without()
        watched()  # warm-up
        found = in_turns(without, watched, TINY_ROUNDS if setting.tiny else ROUNDS)
    return {
        "collectives": sum(recorder.counts.values()) // (2 * len(found["everything recorded"]) + 1),
        "time_with_over_without": {clock: vars(cost) for clock, cost in costs_of(found).items()},
        "s": {way: spread([wall / 2 for _, wall in times]) for way, times in found.items()},
    }


def _one_row(given: Inputs) -> dict[str, Tensor]:
    """Return the inputs of one row, as ShardedModel gives them to the transformer."""
    row = given.rows[0]
    assert row.cond is not None
    return {
        "img": given.latents,
        "img_ids": given.img_ids,
        "txt": row.txt[None],
        "txt_ids": given.img_ids.new_zeros(1, row.txt.shape[0], given.img_ids.shape[2]),
        "timesteps": torch.full((1,), row.t, device=given.latents.device),
        "y_vec": row.y_vec[None],
        "cond": row.cond[None],
    }
