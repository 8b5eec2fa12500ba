"""Weights in host memory, under a cap of the GPU's: what of the transfer is hidden, and whether bits are equal."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from _bench import Spread, ratios, spread
from torch import Tensor

from _gpu.notes import Notes, median_of
from _gpu.setting import LARGE, SMALL, Setting
from _gpu.transformer import Inputs, Place, Stepper, join_alone, load_transformer
from opensora_launch.engines.base import Transformer
from opensora_launch.plan.choose import options
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.memory import USABLE
from opensora_launch.plan.placement import Placement, placement_text
from opensora_launch.plan.set_aside import RESERVED_BYTES
from opensora_launch.plan.video_size import VideoSize
from opensora_launch.plan.workload import Workload
from opensora_launch.schema.cards import Card
from opensora_launch.schema.config import Fit, LayoutConfig, Offload, PlacementConfig, Shard, TopologyConfig

CAPS_GB = (24, 16)
ROUNDS = {LARGE: 1, SMALL: 3}


def offload(setting: Setting, notes: Notes) -> None:
    """Compare steps with offloaded and shared weights to steps with all weights on the GPU, in one process each."""
    for cap in CAPS_GB:
        notes.point(f"{cap} GB", partial(_capped, setting, cap))
    notes.point(
        "shared and offloaded", partial(_against_whole, setting, Placement(Shard.node, Offload.host), None, (SMALL,))
    )


def _capped(setting: Setting, cap: int) -> dict[str, Any]:
    """Place the weights as the planner does for a card with so much memory, and let tensors have no more of it."""
    placement, predicted = _planned(setting, cap)
    for_tensors = cap * 1e9 * USABLE - RESERVED_BYTES
    found = _against_whole(setting, placement, for_tensors)
    return {"cap_bytes": for_tensors, "predicted_bytes": predicted - RESERVED_BYTES, **found}


def _planned(setting: Setting, cap: int) -> tuple[Placement, float]:
    """Return the placement that the planner chooses if the card had so many GB, and the bytes that it predicts.

    The prediction is for denoising, and includes the VAE, which is not loaded here.
    """
    card = replace(setting.card, memory_gib=cap * 1e9 / 2**30)
    work = _workload(setting, card)
    best = options(work, LayoutConfig())[0]
    return best.placement, best.memory.denoise


def _workload(setting: Setting, card: Card) -> Workload:
    shape, model = setting.geometry(LARGE), setting.model
    return Workload(
        net=setting.network(model),
        grid=shape.grid,
        video=VideoSize(shape.width_px, shape.height_px, shape.num_frames, model.vae.tile_px),
        steps=((1, 1),),
        batches=1,
        videos=1,
        ranks=1,
        gpus_per_node=1,
        products=setting.products,
        placement=PlacementConfig(offload=Offload.host, resident_blocks=0 if setting.tiny else None),
        fit=Fit.auto,
        card=card,
        topology=TopologyConfig(gpus_per_node=1),
    )


def _against_whole(
    setting: Setting, placement: Placement, cap_bytes: float | None, videos: Sequence[str] = (SMALL, LARGE)
) -> dict[str, Any]:
    """Time steps with whole weights, free them, and time the same steps with placed weights."""
    join_alone()
    place, model = Place.of(Layout()), setting.model
    whole = load_transformer(setting, model, Placement(), place)
    inputs = {video: Inputs.of(setting, model, setting.geometry(video)) for video in videos}
    expected = {video: _steps(setting, whole, place, given, ROUNDS[video]) for video, given in inputs.items()}
    del whole
    setting.free()
    setting.cap(cap_bytes)
    try:
        placed = load_transformer(setting, model, placement, place)
        assert placed.blocks is not None, f"{placement_text(placement)} streams nothing"
        placed.blocks.pass_through()
        transfer = spread([setting.timed(placed.blocks.pass_through) for _ in range(3)])
        found: dict[str, Any] = {
            "placement": placement_text(placement),
            "resident_blocks": placement.resident_blocks,
            "transfer_s": transfer,
        }
        for video, given in inputs.items():
            want, before, _ = expected[video]
            got, after, peak = _steps(setting, placed, place, given, ROUNDS[video])
            found[video] = {**beside(before, after, transfer), **peak, "equal_bits": torch.equal(got, want)}
    finally:
        setting.cap(None)
    return found


def _steps(
    setting: Setting, transformer: Transformer, place: Place, given: Inputs, rounds: int
) -> tuple[Tensor, list[float], dict[str, int | None]]:
    """Return a step's result, the seconds of some steps, and the peak of the last."""
    run = Stepper.of(setting, setting.model, transformer, place, given)
    if rounds > 1:
        run()  # warm-up; a large step needs none after the small ones
    seconds = []
    for _ in range(rounds):
        result, taken, peak = setting.measured(run)
        seconds.append(taken)
    return result.cpu(), seconds, peak


def beside(whole: list[float], placed: list[float], transfer: Spread | Mapping[str, Any]) -> dict[str, Any]:
    """Return what a transfer of weights costs a step, and which share of it is hidden by the step's own work."""
    exposed = max(0.0, spread(placed).median - spread(whole).median)
    return {
        "whole_s": spread(whole),
        "placed_s": spread(placed),
        "placed_over_whole": ratios(placed, whole),
        "exposed_s": exposed,
        "hidden_share": max(0.0, 1 - exposed / median_of(transfer)),
    }
