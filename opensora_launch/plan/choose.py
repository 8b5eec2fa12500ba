"""Rank every legal layout of a topology by predicted time under the memory limit. Pure: no clock, no files."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from opensora_launch.plan.compile_choice import COMPILE_S
from opensora_launch.plan.layout import Layout, Rules, all_layouts, configured_degrees, layout_problem, with_fewer_rows
from opensora_launch.plan.memory import FP8_BYTES, FRAGMENTS, GIB, USABLE, Memory, blocks_bytes, memory_of_run
from opensora_launch.plan.networks import VAES
from opensora_launch.plan.placement import Placement, placements
from opensora_launch.plan.times import (
    Rates,
    StepCounts,
    StepLoad,
    StepTime,
    rates_of,
    step_counts,
    step_time,
    uses_nvlink,
)
from opensora_launch.plan.video_size import busiest_pixels
from opensora_launch.plan.workload import Workload
from opensora_launch.schema.config import Fit, LayoutConfig, Offload, PlacementConfig, Shard, Storage
from opensora_launch.schema.model_constants import TOKENS_AT_ONCE

HOST_PRICE = 0.02  # share of the time that weights in host memory must save, because they occupy (pinned) memory
TEXT_S, SAVE_PIXELS_S = 2.0, 60e6  # both encoders, loaded; H.264 in one process


@dataclass(frozen=True)
class Phases:
    """Seconds for the whole job. compute, ulysses, ring, tensor, gather and launch add up to denoising."""

    load: float
    text: float
    compute: float
    ulysses: float
    ring: float
    tensor: float
    gather: float
    launch: float
    vae: float
    save: float
    image: float = 0.0  # the image stage, with the loading of its model
    compile: float = 0.0  # the blocks, once

    @property
    def denoise(self) -> float:
        return self.compute + self.ulysses + self.ring + self.tensor + self.gather + self.launch

    @property
    def total(self) -> float:
        """All seconds, with what happens once: weights from disk, texts, and first frames."""
        return self.load + self.text + self.image + self.compile + self.making

    @property
    def making(self) -> float:
        """Seconds for the videos themselves, with the weights loaded."""
        return self.denoise + self.vae + self.save


@dataclass(frozen=True)
class Option:
    """A layout for each number of rows, and its predicted time and memory."""

    layouts: tuple[tuple[int, Layout], ...]  # rows ascending
    placement: Placement
    phases: Phases
    memory: Memory
    limit_bytes: float
    efficiency: float  # compared with one GPU with unlimited memory
    energy_kwh: float
    images: "Option | None" = None  # that of the image stage before it

    @property
    def layout(self) -> Layout:
        """The layout of the steps with the most rows."""
        return self.layouts[-1][1]

    @property
    def fits(self) -> bool:
        return self.memory.peak <= self.limit_bytes and (self.images is None or self.images.fits)

    @property
    def making(self) -> float:
        """Seconds for the images and the videos, with the weights loaded."""
        return self.phases.making + (self.images.phases.making if self.images else 0.0)


def options(work: Workload, fixed: LayoutConfig) -> tuple[Option, ...]:
    """Return all options: those that fit first, then by time, whole weights, more guidance ranks, fewer ring hops.

    Configured placement settings are kept. If they leave a choice, weights are whole on every rank if that fits, else
    divided (tp) or placed so that the job is fastest; host memory is used only if it saves time. If no placement fits,
    the options are those of the placement that needs the least memory.
    """
    found = list[tuple[Option, ...]]()
    for placement in placements(work.placement, work.fit, work.ranks, work.gpus_per_node):
        found.append(_options(work, fixed, placement))
        if found[0] and found[0][0].fits and found[0][0].layout.tp == 1:
            break  # nothing is faster than whole weights on the GPU
    fitting = [ways for ways in found if ways and ways[0].fits]
    if fitting:
        return min(
            fitting,
            key=lambda ways: ways[0].phases.making * (1 + HOST_PRICE * (ways[0].placement.offload is Offload.host)),
        )
    return min(found, key=lambda ways: min((o.memory.peak for o in ways), default=math.inf))


def passed_over(work: Workload, fixed: LayoutConfig, chosen: Option) -> tuple[Option, ...]:
    """Return the best option of each allowed placement that was not chosen."""
    allowed = placements(work.placement, work.fit, work.ranks, work.gpus_per_node)
    others = (p for p in allowed if p != replace(chosen.placement, resident_blocks=p.resident_blocks))
    return tuple(found[0] for p in others if (found := _options(work, fixed, p)))


def _options(work: Workload, fixed: LayoutConfig, placement: Placement) -> tuple[Option, ...]:
    predict = _Predictor(work, placement)
    found = [predict.option(layout, fixed) for layout in _layouts(work, fixed, placement)]
    found.sort(key=lambda o: (not o.fits, o.phases.making, o.layout.tp, -o.layout.cfg, o.layout.ring))
    return tuple(found)


def may_fit(work: Workload, fixed: LayoutConfig) -> bool:
    """Return whether any layout fits in any placement. Much faster than `options`."""
    ladder = placements(work.placement, work.fit, work.ranks, work.gpus_per_node)
    return any(
        predict.fits(layout)
        for predict in (_Predictor(work, placement) for placement in reversed(ladder))
        for layout in _layouts(work, fixed, predict.placement)
    )


def overlap_saves_s(work: Workload, layouts: Sequence[tuple[int, Layout]], placement: Placement) -> float:
    """Return the seconds that a batch is faster if Ulysses exchanges while the blocks compute; less than 0: slower."""
    predict = _Predictor(work, placement)
    return predict.steps_s(layouts, overlap=False) - predict.steps_s(layouts, overlap=True)


def _layouts(work: Workload, fixed: LayoutConfig, placement: Placement) -> list[Layout]:
    """Return the legal layouts of the steps with the most rows, without useless ones if others exist."""
    rules = _rules(work, placement)
    degrees = configured_degrees(fixed) | ({"tp": 1} if work.net.fp8_share else {})
    legal = [
        layout
        for layout in all_layouts(work.ranks, degrees)
        if layout.sequence <= work.grid.total_tokens and not layout_problem(rules, layout)
    ]
    return [layout for layout in legal if _useful(work, layout, work.max_rows)] or legal


def _rules(work: Workload, placement: Placement) -> Rules:
    return Rules(work.engine, work.net.heads, work.net.feed_forward, placement)


def _useful(work: Workload, layout: Layout, rows: int) -> bool:
    """Return whether no rank only waits: there are as many heads, rows and batches as ranks that share them."""
    return layout.ulysses * layout.tp <= work.net.heads and layout.cfg <= rows and layout.dp <= work.batches


def ways_to_fit(work: Workload, fixed: LayoutConfig) -> tuple[Option, ...]:
    """Return the best option of each other placement that fits, fastest first, ignoring the configured placement."""
    free = placements(PlacementConfig(storage=work.placement.storage), Fit.auto, work.ranks, work.gpus_per_node)
    allowed = placements(work.placement, work.fit, work.ranks, work.gpus_per_node)
    ways = (_options(work, fixed, placement) for placement in free if placement not in allowed)
    found = [options[0] for options in ways if options and options[0].fits]
    return tuple(sorted(found, key=lambda o: (o.placement.offload is Offload.host, o.phases.making)))


class _Predictor:
    """Predicts one job. What its layouts have in common is computed once."""

    def __init__(self, work: Workload, placement: Placement) -> None:
        self.work, self.placement = work, placement
        self._steps: dict[tuple[int, Layout, Placement], StepTime] = {}
        self._fewer: dict[tuple[int, int, int], Layout] = {}
        self._rules = _rules(work, placement)
        each = (rates_of(card, work.topology, work.products, work.net.fp8_share) for card in work.card.each)
        alone = ((self._alone(rates), rates) for rates in each)
        self.alone, self.rates = max(alone, key=lambda pair: pair[0])  # the slowest card sets the pace of all
        self.limit = work.card.memory_gib * GIB * USABLE
        self.nvlink = uses_nvlink(work.card, work.topology)

    def option(self, most: Layout, fixed: LayoutConfig) -> Option:
        work = self.work
        layouts = tuple(
            (rows, most if rows == work.max_rows else self._best(rows, most, fixed)) for rows, _ in sorted(work.steps)
        )
        placement, memory = self._filled(layouts)
        phases = self._phases(layouts, memory, placement)
        watts = work.card.tdp_w * work.ranks
        return Option(
            layouts=layouts,
            placement=placement,
            phases=phases,
            memory=memory,
            limit_bytes=self.limit,
            efficiency=self.alone / (phases.making * work.ranks),
            energy_kwh=watts * phases.total / 3.6e6,
        )

    def _alone(self, rates: Rates) -> float:
        """Return the seconds of one GPU with unlimited memory."""
        work = self.work
        steps = sum(n * step_time(self._counts(rows, Layout(), Placement()), rates).total for rows, n in work.steps)
        return work.batches * steps + work.videos * (self._decode_s(1, rates) + self._save_s())

    def fits(self, most: Layout) -> bool:
        """Return whether the steps with the most rows fit if no offloaded block stays on the GPU."""
        return self._memory(((self.work.max_rows, most),), self.placement).peak <= self.limit

    def _best(self, rows: int, most: Layout, fixed: LayoutConfig) -> Layout:
        """Return the fastest layout for steps with fewer rows that has the same dp and tp."""
        key = (rows, most.dp, most.tp)
        if key not in self._fewer:
            alike = all_layouts(self.work.ranks, configured_degrees(with_fewer_rows(most, fixed)))
            free = [layout for layout in alike if not layout_problem(self._rules, layout)]
            useful = [lay for lay in free if _useful(self.work, lay, rows)] or free
            best = min(useful, key=lambda lay: (self._step(rows, lay, self.placement).total, -lay.cfg, lay.ring))
            self._fewer[key] = best
        return self._fewer[key]

    def _step(self, rows: int, layout: Layout, placement: Placement) -> StepTime:
        key = (rows, layout, placement)
        if key not in self._steps:
            ways = [step_time(self._counts(rows, layout, placement), self.rates)]
            if self.work.overlap and layout.ulysses > 1:
                ways.append(step_time(self._counts(rows, layout, placement, overlap=True), self.rates))
            self._steps[key] = min(ways, key=lambda way: way.total)
        return self._steps[key]

    def steps_s(self, layouts: Sequence[tuple[int, Layout]], *, overlap: bool) -> float:
        """Return the seconds of all steps of a batch."""
        by_rows, most = dict(layouts), self.placement
        counted = ((count, self._counts(rows, by_rows[rows], most, overlap=overlap)) for rows, count in self.work.steps)
        return sum(count * step_time(counts, self.rates).total for count, counts in counted)

    def _counts(self, rows: int, layout: Layout, placement: Placement, *, overlap: bool = False) -> StepCounts:
        work, ranks = self.work, layout.cfg * layout.sequence
        spread = {Shard.none: 1, Shard.node: min(ranks, work.gpus_per_node), Shard.all: ranks}
        return step_counts(
            StepLoad(
                work.net, work.grid, rows, layout, work.gpus_per_node,
                sharded=spread[placement.shard], offloaded=placement.offload is Offload.host,
                rows_at_once=placement.rows_at_once, away=1 - placement.resident_blocks / work.net.blocks,
                tokens_at_once=TOKENS_AT_ONCE, element_bytes=work.element_bytes, compiled=work.compiled,
                overlap=overlap, packed=FP8_BYTES / work.element_bytes if placement.storage is Storage.fp8 else 1.0,
            )
        )  # fmt: skip

    def _filled(self, layouts: tuple[tuple[int, Layout], ...]) -> tuple[Placement, Memory]:
        """Keep as many offloaded blocks on the GPU as there is room for."""
        placement, work = self.placement, self.work
        memory = self._memory(layouts, placement)
        if placement.offload is Offload.none or work.placement.resident_blocks is not None:
            return placement, memory
        block = work.net.networks * blocks_bytes(work.net, work.element_bytes) / work.net.blocks * FRAGMENTS
        block *= FP8_BYTES / work.element_bytes if placement.storage is Storage.fp8 else 1.0
        room = max(0.0, self.limit - max(memory.denoise, memory.decode)) // block
        for stay in range(min(work.net.blocks, int(room)), 0, -1):  # blocks differ in size: the first guess may not fit
            filled = replace(placement, resident_blocks=stay)
            more = self._memory(layouts, filled)
            if more.peak <= self.limit:
                return filled, more
        return placement, memory

    def _memory(self, layouts: tuple[tuple[int, Layout], ...], placement: Placement) -> Memory:
        work = self.work
        return memory_of_run(
            work.net, work.grid, work.video, layouts, gpus_per_node=work.gpus_per_node, placement=placement,
            element_bytes=work.element_bytes, engine=work.engine, nvlink=self.nvlink,
            overlap=work.overlap,
        )  # fmt: skip

    def _phases(self, layouts: tuple[tuple[int, Layout], ...], memory: Memory, placement: Placement) -> Phases:
        work, by_rows, dp = self.work, dict(layouts), layouts[-1][1].dp
        rounds = math.ceil(work.batches / dp)
        parts: Counter[str] = Counter()
        for rows, count in work.steps:
            for name, seconds in vars(self._step(rows, by_rows[rows], placement)).items():
                parts[name] += rounds * count * seconds
        load = memory.disk / (work.topology.disk_gb_s * 1e9)
        own_videos = math.ceil(work.videos / dp)
        decode_s = self._decode_s(max(1, work.ranks // dp), self.rates)
        vae, save = own_videos * decode_s, own_videos * self._save_s()
        return Phases(load=load, text=TEXT_S, **parts, vae=vae, save=save, compile=COMPILE_S * work.compiled)

    def _decode_s(self, ranks: int, rates: Rates) -> float:
        """Return the seconds to decode a video on some ranks: at the VAE's own rate, but no faster than products."""
        vae, pixels = VAES[self.work.net.vae], busiest_pixels(self.work.video, ranks)
        return pixels * max(vae.equal_flops / rates.vae_flops, vae.flops / rates.matmul_flops)

    def _save_s(self) -> float:
        video = self.work.video
        return video.width_px * video.height_px * video.num_frames / SAVE_PIXELS_S
