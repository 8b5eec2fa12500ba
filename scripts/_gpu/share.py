"""One rank's share of a step on several GPUs: only its compute, since torch's fake process group moves nothing."""

from dataclasses import replace
from functools import partial
from typing import Any

import torch
import torch.distributed as dist
from _bench import ratios, spread
from torch.testing._internal.distributed.fake_pg import FakeStore

from _gpu.notes import Notes
from _gpu.setting import LARGE, Setting
from _gpu.transformer import Inputs, Place, Stepper, load_transformer
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.placement import Placement
from opensora_launch.schema.config import ModelConfig

RANKS = (2, 4, 8)
BLOCKS = (1, 2)  # double and single ones, in Open-Sora's proportion: all blocks of a kind take equally long
ROUNDS = 2
STALE = 2**31  # numbers


def share(setting: Setting, notes: Notes) -> None:
    """Time rank 0 of each layout beside a rank that works alone. The results are simulated: nothing is exchanged."""
    notes.data["kind"] = "simulated"
    for ranks in RANKS:
        notes.point(f"{ranks} GPUs", partial(_shares, setting, ranks))


def layouts_of(ranks: int, heads: int) -> dict[str, Layout]:
    """Return the layouts of the tokens over so many ranks: Ulysses, ring, and both."""
    found = {"ulysses": Layout(ulysses=ranks), "ring": Layout(ring=ranks)}
    if ranks > 2:
        found["hybrid"] = Layout(ring=2, ulysses=ranks // 2)
    return {name: layout for name, layout in found.items() if layout.ulysses <= heads}


def _shares(setting: Setting, ranks: int) -> dict[str, Any]:
    model = _shallow(setting.model)
    alone = _steps(setting, model, Layout())
    found: dict[str, Any] = {"blocks": sum(BLOCKS), "alone_s": spread(alone)}
    for name, layout in layouts_of(ranks, model.mmdit.num_heads).items():
        seconds = _steps(setting, model, layout)
        over = ratios(seconds, alone)
        found[name] = {
            "layout": str(layout),
            "s": spread(seconds),
            "share_over_alone": over,
            "compute_efficiency": 1 / (ranks * over.median),
        }
    return found


def _shallow(model: ModelConfig) -> ModelConfig:
    double, single = BLOCKS
    return replace(model, mmdit=replace(model.mmdit, depth=double, depth_single_blocks=single))


def _steps(setting: Setting, model: ModelConfig, layout: Layout) -> list[float]:
    """Return the seconds of steps of rank 0.

    What a rank receives is what its memory held before. So the memory is filled with random numbers first: a GPU
    multiplies zeros faster.
    """
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=layout.ranks)
    try:
        place = Place.of(layout)
        given = Inputs.of(setting, model, setting.geometry(LARGE))
        run = Stepper.of(setting, model, load_transformer(setting, model, Placement(), place), place, given)
        stale = setting.random(2**10 if setting.tiny else STALE, dtype=torch.bfloat16)
        del stale
        run()  # warm-up
        return [setting.timed(run) for _ in range(ROUNDS)]
    finally:
        dist.destroy_process_group()
        setting.free()
