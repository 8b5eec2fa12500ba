"""A request becomes a Plan: all that a worker needs to know. Pure: no torch, no files, no clock.

The plan is written to plan.json, and that file is the only thing workers read.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from functools import lru_cache
from typing import Any, cast

from opensora_launch.errors import UserError
from opensora_launch.plan.checks import early_problems
from opensora_launch.plan.choose import Option, options
from opensora_launch.plan.codec import decode, of_schema
from opensora_launch.plan.fit import fit_problems
from opensora_launch.plan.geometry import Geometry, geometry, geometry_problems
from opensora_launch.plan.layout import Layout, LayoutFacts, layouts_by_rows, rules_of, smaller_placement
from opensora_launch.plan.memory import VideoSize
from opensora_launch.plan.networks import Shape, network_of
from opensora_launch.plan.placement import Placement, placement_problems, placements
from opensora_launch.plan.rows import Guidance, equal_branches, needed_rows
from opensora_launch.plan.work import Work, steps_of
from opensora_launch.schema.config import (
    Engine,
    LauncherConfig,
    LauncherKind,
    LayoutConfig,
    ModelConfig,
    NumericsConfig,
    PlacementConfig,
    Precision,
    RunConfig,
    SamplingConfig,
    Storage,
)

SCHEMA = 1
BATCH_SIZES = (2, 4, 8)
BATCH_GAIN = 0.98  # of the time, that a larger batch must not exceed to be worth its memory
BATCH_JOB_CHECKPOINT_STEPS = 5  # a job on a cluster may lose a node or be preempted


@dataclass(frozen=True)
class VideoRequest:
    """One video to make: one sample of one prompt, with everything that is its own."""

    name: str  # of its files: "0007_2" is prompt 7, sample 2
    prompt: str  # as the user gave it
    text: str  # what the encoders get: the prompt with its suffixes
    negative: str
    refs: tuple[str, ...]
    cond_type: str
    seed: int
    guidance: Guidance


@dataclass(frozen=True)
class Machine:
    """What the ranks run on, as the launcher found it."""

    device: str  # "cpu" or "cuda"
    nodes: int
    gpus_per_node: int
    cpus_per_node: int
    gpus: tuple[str, ...] = ()  # UUIDs, where not all that are visible are taken

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class Plan:
    schema: int
    version: str  # of opensora_launch
    machine: Machine
    threads_per_rank: int
    timeout_s: float
    precision: str
    numerics: NumericsConfig
    attention: str
    profile: bool
    checkpoint_every_steps: int  # of denoising; 0 never
    model: ModelConfig
    geometry: Geometry
    placement: Placement
    smaller: Placement | None  # what to go on with, once, where memory runs out
    text_cache: str | None
    sampling: SamplingConfig
    layouts: tuple[tuple[int, Layout], ...]  # (rows of a step, its layout), rows rising from 1
    videos: tuple[VideoRequest, ...]
    engine: Engine = Engine.native

    def layout(self, rows: int) -> Layout:
        return dict(self.layouts)[rows]

    @property
    def dp(self) -> int:
        return self.layouts[0][1].dp

    @property
    def approximate(self) -> tuple[str, ...]:
        """What was asked for and changes the video by more than rounding: named wherever the run is told of."""
        asked = {
            "placement.storage=fp8": self.placement.storage is Storage.fp8,
            "numerics.tf32=true": self.numerics.tf32 and self.precision == "fp32",
            "model.vae.tile_frames": self.model.vae.tile_frames is not None,
        }
        return tuple(name for name, true in asked.items() if true)

    @property
    def batches(self) -> tuple[tuple[VideoRequest, ...], ...]:
        return batches(self.videos, self.sampling.batch_size or 1)

    def with_less(self, videos: Sequence[VideoRequest]) -> "Plan | None":
        """How to go on with these videos where memory has run out; None where there is no such way."""
        if self.smaller is None:
            return None
        return replace(self, placement=self.smaller, smaller=None, videos=tuple(videos))

    def to_dict(self) -> dict[str, Any]:
        return asdict(self)

    @classmethod
    def from_dict(cls, data: dict[str, Any]) -> "Plan":
        return cast(Plan, decode(cls, of_schema(data, SCHEMA)))


def batches(videos: Sequence[VideoRequest], size: int) -> tuple[tuple[VideoRequest, ...], ...]:
    """Neighbours with the same steps and guidance, at most `size` together."""
    groups: list[list[VideoRequest]] = []
    for video in videos:
        if groups and len(groups[-1]) < size and groups[-1][0].guidance == video.guidance:
            groups[-1].append(video)
        else:
            groups.append([video])
    return tuple(tuple(g) for g in groups)


def rows_per_step(video: VideoRequest, latent_frames: int, prune: bool) -> tuple[int, ...]:
    """Row-forwards of each step of one video, as far as the request itself shows which rows are equal."""
    return _rows_per_step(
        video.guidance,
        video.text == video.negative,
        video.cond_type != "t2v" and latent_frames > 1,
        latent_frames,
        prune,
    )


@lru_cache(maxsize=64)
def _rows_per_step(
    guidance: Guidance, text_equals_negative: bool, has_condition: bool, latent_frames: int, prune: bool
) -> tuple[int, ...]:
    """Kept: the videos of a run are mostly alike in this."""
    equal = equal_branches(text_equals_negative=text_equals_negative, has_condition=has_condition)
    return tuple(
        len(needed_rows(guidance, step, latent_frames, equal_to=equal, prune=prune))
        for step in range(guidance.num_steps)
    )


def make_plan(run: RunConfig, machine: Machine, videos: Sequence[VideoRequest], version: str) -> Plan:
    """Resolve a request, or raise UserError naming every reason why it cannot be."""
    problems = geometry_problems(run.video, run.model.mmdit) + placement_problems(run.placement)
    problems += early_problems(run, machine.device, machine.ranks, machine.gpus_per_node)
    if problems:
        raise UserError("this run cannot be planned", problems)
    precision = _precision(run, machine)
    shape = geometry(run.video, run.model.mmdit, run.model.text.t5_max_length)
    threads = run.launcher.threads_per_rank
    layouts, placement, batch = _arranged(run, machine, shape, videos)
    return Plan(
        schema=SCHEMA,
        version=version,
        machine=machine,
        threads_per_rank=threads or max(1, machine.cpus_per_node // machine.gpus_per_node),
        timeout_s=run.launcher.timeout_s,
        precision=precision,
        numerics=run.numerics,
        attention=run.attention.value,
        profile=run.profile,
        checkpoint_every_steps=_checkpoint_every(run.launcher),
        model=run.model,
        geometry=shape,
        placement=placement,
        smaller=smaller_placement(run, machine.ranks, machine.gpus_per_node, layouts, placement),
        text_cache=run.text_cache,
        sampling=replace(run.sampling, batch_size=batch),
        layouts=layouts,
        videos=tuple(videos),
        engine=run.engine,
    )


def _precision(run: RunConfig, machine: Machine) -> str:
    """auto: bf16 on GPUs, fp16 on those that have no bf16, fp32 on the CPU."""
    if run.precision is not Precision.auto:
        return run.precision.value
    if machine.device != "cuda":
        return "fp32"
    return "fp16" if run.hardware.known and run.hardware.bf16_tflops is None else "bf16"


def _arranged(
    run: RunConfig, machine: Machine, shape: Geometry, videos: Sequence[VideoRequest]
) -> tuple[tuple[tuple[int, Layout], ...], Placement, int]:
    """Layouts, placement and batch size: by predicted time under the memory limit where the card is known, else by
    a rule of thumb.
    """
    fixed, size = LayoutConfig(**vars(run.layout)), run.sampling.batch_size or 1
    groups = batches(videos, size)
    most = max((max(_rows_of(group, shape, run), default=1) for group in groups), default=1)
    first = placements(run.placement, run.fit, machine.ranks, machine.gpus_per_node)[0]
    facts = LayoutFacts(
        ranks=machine.ranks,
        gpus_per_node=machine.gpus_per_node,
        batches=max(len(groups), 1),
        max_rows=most,
        total_tokens=shape.total_tokens,
        rules=rules_of(run.model.mmdit, run.engine, first),
    )
    by_rule = layouts_by_rows(facts, fixed)  # refuses what is impossible
    if not (run.hardware.known and machine.device == "cuda" and videos):
        return by_rule, first, size
    work, size, found = _best_batch(run, machine, shape, videos)
    if problems := fit_problems(work, fixed, found):
        raise UserError("this run does not fit in GPU memory", problems)
    return found[0].layouts, found[0].placement, size


def predict(run: RunConfig, machine: Machine, videos: Sequence[VideoRequest]) -> tuple[Work, tuple[Option, ...]]:
    """Every legal layout of a run that has a plan, the best first."""
    shape = geometry(run.video, run.model.mmdit, run.model.text.t5_max_length)
    work, _, found = _best_batch(run, machine, shape, videos)
    return work, found


def _best_batch(
    run: RunConfig, machine: Machine, shape: Geometry, videos: Sequence[VideoRequest]
) -> tuple[Work, int, tuple[Option, ...]]:
    """With as many videos at once as was asked for, or else as many as save time and fit: 1, 2, 4, ..."""
    fixed = LayoutConfig(**vars(run.layout))
    best, size = work_of(run, machine, shape, videos, run.sampling.batch_size or 1), run.sampling.batch_size or 1
    found = options(best, fixed)
    if run.sampling.batch_size is not None:
        return best, size, found
    for more in (n for n in BATCH_SIZES if n <= max((len(b) for b in batches(videos, n)), default=1)):
        work = work_of(run, machine, shape, videos, more)
        ways = options(work, fixed)
        if not (ways and ways[0].fits and ways[0].phases.making < BATCH_GAIN * found[0].phases.making):
            break
        best, size, found = work, more, ways
    return best, size, found


def work_of(run: RunConfig, machine: Machine, shape: Geometry, videos: Sequence[VideoRequest], batch_size: int) -> Work:
    """What is to be made, as the cost functions want it: the largest batch stands for all."""
    groups = batches(videos, batch_size)
    return Work(
        net=network_of(run.model.mmdit, shape.text_tokens, run.model.name),
        shape=Shape(shape.latent_frames, shape.tokens_per_frame, shape.text_tokens),
        video=VideoSize(
            shape.width_px, shape.height_px, shape.num_frames, run.model.vae.tile_px, run.model.vae.tile_frames
        ),
        steps=_steps(groups, shape, run),
        batches=len(groups),
        videos=len(videos),
        ranks=machine.ranks,
        gpus_per_node=machine.gpus_per_node,
        element_bytes=4 if _precision(run, machine) == "fp32" else 2,
        placement=PlacementConfig(**vars(run.placement)),
        fit=run.fit,
        card=run.hardware,
        topology=replace(run.topology, gpus_per_node=machine.gpus_per_node),
        engine=run.engine,
    )


def _steps(groups: Sequence[Sequence[VideoRequest]], shape: Geometry, run: RunConfig) -> tuple[tuple[int, int], ...]:
    """Of the batch with the most row-forwards, for as many rows as any batch has in a step."""
    counted = [_rows_of(group, shape, run) for group in groups]
    most = max(max(rows) for rows in counted)
    steps = dict(steps_of(max(counted, key=sum)))
    return tuple((rows, steps.get(rows, 0)) for rows in range(1, most + 1))


def _rows_of(group: Sequence[VideoRequest], shape: Geometry, run: RunConfig) -> list[int]:
    """Rows of each step of a batch."""
    each = [rows_per_step(video, shape.latent_frames, run.sampling.prune_rows) for video in group]
    return [sum(rows) for rows in zip(*each, strict=True)]


def _checkpoint_every(launcher: LauncherConfig) -> int:
    if launcher.checkpoint_every_steps is not None:
        return launcher.checkpoint_every_steps
    return BATCH_JOB_CHECKPOINT_STEPS if launcher.kind is LauncherKind.slurm else 0
