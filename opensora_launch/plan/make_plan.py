"""Turn a request into a Plan: check it, and choose layouts, placement and batch size. Pure."""

from collections.abc import Collection, Sequence
from dataclasses import replace

from opensora_launch.errors import UserError
from opensora_launch.plan.checks import early_problems
from opensora_launch.plan.choose import Option, options, overlap_saves_s
from opensora_launch.plan.compile_choice import compile_choice, compile_problems
from opensora_launch.plan.first_frames import first_frame_px, image_problems, image_requests, image_run
from opensora_launch.plan.fit import fit_problems
from opensora_launch.plan.geometry import Geometry, geometry_of, geometry_problems
from opensora_launch.plan.image_stage import after_images
from opensora_launch.plan.layout import Layout, LayoutFacts, layouts_by_rows, rules_of, smaller_placement
from opensora_launch.plan.networks import network_of
from opensora_launch.plan.placement import Placement, placement_problems, placements
from opensora_launch.plan.placement_by_rule import placement_by_rule
from opensora_launch.plan.plan import (
    SCHEMA,
    Machine,
    Plan,
    VideoRequest,
    approximate_steps,
    batches,
    rows_per_step,
)
from opensora_launch.plan.video_size import video_size
from opensora_launch.plan.workload import Workload, steps_of
from opensora_launch.schema.config import Engine, LauncherConfig, LauncherKind, Precision, RunConfig
from opensora_launch.schema.kernel_kinds import Compile, Overlap

BATCH_SIZES = (2, 4, 8)
BATCH_GAIN = 0.98  # a larger batch must reduce the time to this share to be worth its memory
BATCH_JOB_CHECKPOINT_STEPS = 5  # a cluster job may lose a node or be preempted


def make_plan(
    run: RunConfig,
    machine: Machine,
    videos: Sequence[VideoRequest],
    version: str,
    *,
    by_rule: bool = False,
    made_images: Collection[str] = (),
) -> Plan:
    """Resolve a request. Raise a UserError with every problem if it cannot be planned.

    `by_rule` chooses the layout by rule, as for an unknown card: then no problem is about memory. `made_images` are
    the videos whose first frames are there already.
    """
    problems = geometry_problems(run.video, run.model) + placement_problems(run.placement)
    problems += early_problems(run, machine.device, machine.ranks, machine.gpus_per_node)
    problems += compile_problems(run)
    problems += image_problems(run) if not problems else []
    if problems:
        raise UserError("this run cannot be planned", problems)
    images = _plan_images(run, machine, [v for v in videos if v.name not in made_images], version, by_rule)
    precision = _precision(run, machine)
    geometry = geometry_of(run.video, run.model)
    threads = run.launcher.threads_per_rank
    layouts, placement, batch = _arranged(run, machine, geometry, videos, by_rule)
    work = workload_of(run, machine, geometry, videos, batch) if videos else None
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
        preview_every_steps=run.preview_every_steps,
        model=run.model,
        geometry=geometry,
        placement=placement,
        smaller=smaller_placement(run, machine.ranks, machine.gpus_per_node, layouts, placement),
        text_cache=run.text_cache,
        sampling=replace(run.sampling, batch_size=batch),
        layouts=layouts,
        videos=tuple(videos),
        engine=run.engine,
        compile=compile_choice(run, work, machine.device) if work else Compile.off,
        overlap=work is not None and _overlaps(run, work, layouts, placement, machine.device),
        images=images,
        first_frame_px=first_frame_px(run) if run.image.model else None,
    )


def _overlaps(
    run: RunConfig, work: Workload, layouts: tuple[tuple[int, Layout], ...], placement: Placement, device: str
) -> bool:
    """Return whether Ulysses exchanges while the blocks compute: `on`, or `auto` on known GPUs where it saves time."""
    if not work.overlap or all(layout.ulysses == 1 for _, layout in layouts):
        return False
    known = device == "cuda" and run.hardware.known
    return run.overlap is Overlap.on or (known and overlap_saves_s(work, layouts, placement) > 0.0)


def _plan_images(
    run: RunConfig, machine: Machine, videos: Sequence[VideoRequest], version: str, by_rule: bool
) -> Plan | None:
    """Plan the first frames of these videos; None if they need none. The images' problems are told as theirs."""
    if not run.image.model:
        return None
    try:
        plan = make_plan(image_run(run), machine, image_requests(run, videos), version, by_rule=by_rule)
    except UserError as error:
        raise UserError(error.title, [f"the images: {line}" for line in error.problems]) from error
    return plan if plan.videos else None


def _precision(run: RunConfig, machine: Machine) -> str:
    """Resolve `auto`: bf16 on GPUs, fp16 on GPUs without bf16, fp32 on CPUs."""
    if run.precision is not Precision.auto:
        return run.precision.value
    if machine.device != "cuda":
        return "fp32"
    return "fp16" if run.hardware.known and not run.hardware.has_bf16 else "bf16"


def products_of(run: RunConfig, machine: Machine) -> str:
    """Return the type of the matrix products: the precision, or tf32."""
    precision = _precision(run, machine)
    return "tf32" if precision == "fp32" and run.numerics.tf32 else precision


def _arranged(
    run: RunConfig, machine: Machine, geometry: Geometry, videos: Sequence[VideoRequest], by_rule: bool
) -> tuple[tuple[tuple[int, Layout], ...], Placement, int]:
    """Choose layouts, placement and batch size: the fastest predicted option under the memory limit.

    If the card is unknown, a rule of thumb decides, and the memory that was found.
    """
    fixed, size = run.layout, run.sampling.batch_size or 1
    groups = batches(videos, size)
    most = max((max(_rows_of(group, geometry, run), default=1) for group in groups), default=1)
    first = placements(run.placement, run.fit, machine.ranks, machine.gpus_per_node)[0]
    rules, count = rules_of(run.model.mmdit, run.engine, first), max(len(groups), 1)
    facts = LayoutFacts(machine.ranks, machine.gpus_per_node, count, most, geometry.grid.total_tokens, rules)
    layouts = layouts_by_rows(facts, fixed)  # raises if no layout is possible
    if by_rule or machine.device != "cuda" or not videos or not run.hardware.memory_gib:
        return layouts, first, size
    if not run.hardware.known:
        return layouts, placement_by_rule(workload_of(run, machine, geometry, videos, size), layouts), size
    work, size, found = _best_batch(run, machine, geometry, videos)
    if problems := fit_problems(work, fixed, found):
        raise UserError("this run does not fit in GPU memory", problems)
    return found[0].layouts, found[0].placement, size


def predict(run: RunConfig, machine: Machine, videos: Sequence[VideoRequest]) -> tuple[Workload, tuple[Option, ...]]:
    """Return the workload of a run that has a plan, and its options, best first. Both have those of its images."""
    geometry = geometry_of(run.video, run.model)
    work, _, found = _best_batch(run, machine, geometry, videos)
    if images := image_requests(run, videos):
        work = replace(work, images=predict(image_run(run), machine, images)[0])
    return work, after_images(work, found)


def _best_batch(
    run: RunConfig, machine: Machine, geometry: Geometry, videos: Sequence[VideoRequest]
) -> tuple[Workload, int, tuple[Option, ...]]:
    """Return workload, batch size and options for the configured batch size, else for the largest that saves time."""
    size = run.sampling.batch_size or 1
    best = workload_of(run, machine, geometry, videos, size)
    found = options(best, run.layout)
    if run.sampling.batch_size is not None:
        return best, size, found
    for more in (n for n in BATCH_SIZES if n <= max((len(b) for b in batches(videos, n)), default=1)):
        work = workload_of(run, machine, geometry, videos, more)
        ways = options(work, run.layout)
        if not (ways and ways[0].fits and ways[0].phases.making < BATCH_GAIN * found[0].phases.making):
            break
        best, size, found = work, more, ways
    return best, size, found


def workload_of(
    run: RunConfig, machine: Machine, geometry: Geometry, videos: Sequence[VideoRequest], batch_size: int
) -> Workload:
    """Describe a request for the cost functions. The batch with the most rows stands for all batches."""
    groups = batches(videos, batch_size)
    work = Workload(
        net=network_of(run.model, fp8_products=run.numerics.fp8_products),
        grid=geometry.grid,
        video=video_size(geometry, run.model.vae),
        steps=_steps(groups, geometry, run),
        batches=len(groups),
        videos=len(videos),
        ranks=machine.ranks,
        gpus_per_node=machine.gpus_per_node,
        products=products_of(run, machine),
        placement=run.placement,
        fit=run.fit,
        card=run.hardware,
        topology=replace(run.topology, gpus_per_node=machine.gpus_per_node),
        engine=run.engine,
        approximate=approximate_steps(run.sampling, run.model),
    )
    compiled = compile_choice(run, work, machine.device) is not Compile.off
    wanted = run.overlap is Overlap.on or (run.overlap is Overlap.auto and machine.device == "cuda")
    return replace(work, compiled=compiled, overlap=wanted and run.engine is Engine.native)


def _steps(groups: Sequence[Sequence[VideoRequest]], geometry: Geometry, run: RunConfig) -> tuple[tuple[int, int], ...]:
    """Return (rows, number of such steps) of the batch with the most row-forwards, up to the most rows of any batch."""
    counted = [_rows_of(group, geometry, run) for group in groups]
    most = max(max(rows) for rows in counted)
    steps = dict(steps_of(max(counted, key=sum)))
    return tuple((rows, steps.get(rows, 0)) for rows in range(1, most + 1))


def _rows_of(group: Sequence[VideoRequest], geometry: Geometry, run: RunConfig) -> list[int]:
    """Return the number of rows of each step of a batch."""
    each = [rows_per_step(video, geometry.latent_frames, run.sampling.prune_rows) for video in group]
    return [sum(rows) for rows in zip(*each, strict=True)]


def _checkpoint_every(launcher: LauncherConfig) -> int:
    if launcher.checkpoint_every_steps is not None:
        return launcher.checkpoint_every_steps
    return BATCH_JOB_CHECKPOINT_STEPS if launcher.kind is LauncherKind.slurm else 0
