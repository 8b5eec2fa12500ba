"""Set-up phase: numeric settings, device, kernel, telemetry and meshes of this rank."""

import logging
import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import replace

import torch
import torch.distributed as dist

from opensora_launch.errors import UserError
from opensora_launch.model.block_parts import Parts
from opensora_launch.model.fp8_products import why_no_fp8
from opensora_launch.model.kernel_choice import Kernel, choose_kernel
from opensora_launch.model.vae import empty_vae
from opensora_launch.parallel.mesh import Axis, Groups, Mesh, build_meshes, node_axis, world_axis
from opensora_launch.parallel.warm_up import warm_up
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.memory import GIB
from opensora_launch.plan.placement import Placement
from opensora_launch.plan.plan import Plan
from opensora_launch.plan.rank_sets import Uses, device_sets, gathers_apart, gathers_on_node
from opensora_launch.plan.resident import fitting_placement, needed_bytes
from opensora_launch.plan.set_aside import LATER_BYTES
from opensora_launch.rundir import AttemptDir
from opensora_launch.schema.autoencoder import VaeKind
from opensora_launch.schema.kernel_kinds import Compile
from opensora_launch.telemetry.heartbeat import Heartbeat
from opensora_launch.telemetry.recorder import Recorder
from opensora_launch.worker.compiled_parts import chosen_parts, may_be_compiled
from opensora_launch.worker.context import DTYPES, RankContext
from opensora_launch.worker.failures import stop_stalled
from opensora_launch.worker.numerics import set_numerics
from opensora_launch.worker.process_group import BACKSTOP, gathered
from opensora_launch.worker.rank import Rank, pick_device
from opensora_launch.worker.rank_facts import (
    device_name,
    device_uuid,
    memory_left,
    record_facts,
    refuse_shared_gpus,
    telemetry_header,
)
from opensora_launch.worker.watch import clock_offset, watch_kernel

log = logging.getLogger("opensora_launch.worker")


def own_device(kind: str, me: Rank) -> torch.device:
    """Return this rank's device, "cpu" or "cuda". All ranks call this together.

    Raises UserError if there is none, or, on all ranks, if two of them have the same GPU.
    """
    device = pick_device(kind, me)
    refuse_shared_gpus(gathered((socket.gethostname(), device_uuid(device))))
    return device


def set_up(
    plan: Plan,
    attempt: AttemptDir,
    me: Rank,
    beat: Heartbeat,
    started: tuple[float, float],
    *,
    more: Sequence[Layout] = (),
) -> RankContext:
    """Return the context of this rank and of its image stage, with meshes for the plan's layouts and for some more.

    started: monotonic and epoch seconds. All ranks call this together.
    """
    set_numerics(plan.threads_per_rank, plan.numerics)
    device = own_device(plan.machine.device, me)
    if plan.numerics.fp8_products:
        _refuse_without_fp8(device)
    kernel = _kernel(plan, device)
    _log(plan, device, kernel)
    header = telemetry_header(plan, me, device, kernel, started)
    header["clock_offset_s"], header["clock_offset_error_s"] = clock_offset(me)
    recorder = Recorder(attempt.events(me.rank), header, device=device.type, heartbeat=beat)
    beat.watch(plan.timeout_s, lambda verdict: stop_stalled(attempt, verdict))
    groups, stages = Groups(BACKSTOP), [plan, plan.images] if plan.images else [plan]
    with recorder.span("setup"):
        with recorder.collective("barrier", tuple(range(me.world)), 0):
            layouts = [layout for stage in stages for _, layout in stage.layouts]
            meshes = build_meshes(dict.fromkeys([*layouts, *more]), me.rank, groups, recorder.collective)
            world = world_axis(me.rank, me.world, groups, recorder.collective)
            nodes = [_node_axis(stage, meshes, me, groups) for stage in stages]
        _import_for_images(stages)
        warm_up(_device_sets(stages, me), me.rank, groups, recorder.collective, device)
        left = memory_left(device)
        placements = [stage.placement if left is None else agreed_placement(stage, *left, world) for stage in stages]
    ctx = RankContext(
        plan=replace(plan, placement=placements[0]),
        run_dir=attempt.run,
        device=device,
        kernel=watch_kernel(kernel, recorder),
        meshes=meshes,
        mesh=meshes[plan.layouts[-1][1]],
        world=world,
        node=nodes[0],
        recorder=recorder,
        set_aside_bytes=left and left[1],
        facts=record_facts(plan.engine, device, kernel),
        parts=_parts(plan, device),
    )
    if plan.images is None:
        return ctx
    images = replace(
        ctx,
        plan=replace(plan.images, placement=placements[1]),
        run_dir=attempt.run.images,
        kernel=_kernel(plan.images, device),
        parts=_parts(plan.images, device),
        mesh=meshes[plan.images.layouts[-1][1]],
        node=nodes[1],
    )
    return replace(ctx, images=images)


def _import_for_images(stages: Sequence[Plan]) -> None:
    """Import what the image autoencoder needs: the import keeps the frames below it, which hold no weights here."""
    for stage in stages:
        if stage.model.vae.kind is VaeKind.image:
            empty_vae(stage.model.vae)


def _refuse_without_fp8(device: torch.device) -> None:
    """Raise UserError on all ranks, which call this together, if any of them cannot compute products in fp8."""
    for rank, problem in enumerate(gathered(why_no_fp8(device))):
        if problem:
            raise UserError(f"numerics.fp8_products=true: rank {rank} {problem}; leave it out")


def _log(plan: Plan, device: torch.device, kernel: Kernel) -> None:
    """Say what computes on this rank, and which faster kernels do not."""
    cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    chosen = f"{kernel.name} {kernel.version}"
    log.info("%s, %s, attention by %s, CPUs %s", device_name(device), plan.precision, chosen, cpus)
    for line in kernel.passed_over:
        log.log(logging.WARNING if line in kernel.refused else logging.INFO, "%s", line)


def _kernel(plan: Plan, device: torch.device) -> Kernel:
    head_dim, dtype = plan.model.mmdit.hidden_size // plan.model.mmdit.num_heads, DTYPES[plan.precision]
    return choose_kernel(plan.attention, device=device, dtype=dtype, head_dim=head_dim, agree=gathered)


def _parts(plan: Plan, device: torch.device) -> Parts:
    return chosen_parts(plan.compile if may_be_compiled(plan) else Compile.off, device, gathered)


def _device_sets(stages: Sequence[Plan], me: Rank) -> dict[tuple[int, ...], Uses]:
    """Return the sets of ranks with which this one exchanges tensors in any stage."""
    found = dict[tuple[int, ...], Uses]()
    for stage in stages:
        layouts = [layout for _, layout in stage.layouts]
        on_node = gathers_on_node(stage.engine, layouts[-1], stage.placement)
        found |= device_sets(layouts, me.rank, me.local_world, on_node=on_node, apart=_apart(stage))
    return dict(sorted(found.items()))


def _node_axis(stage: Plan, meshes: Mapping[Layout, Mesh], me: Rank, groups: Groups) -> Axis:
    mesh = meshes[stage.layouts[-1][1]]
    return node_axis(mesh, me.local_world, me.world, groups, apart=_apart(stage))


def _apart(stage: Plan) -> bool:
    return gathers_apart(stage.layouts[-1][1], stage.placement, overlap=stage.overlap)


def agreed_placement(plan: Plan, free_bytes: int, set_aside_bytes: int, world: Axis) -> Placement:
    """Return the placement for what is free now on the GPU with the least, on all ranks, which call this together."""
    free = torch.tensor([free_bytes])
    with world.exchange(free.nbytes):
        dist.all_reduce(free, dist.ReduceOp.MIN, group=world.group)
    least = int(free) - LATER_BYTES
    placement = fitting_placement(plan, least)
    needed = needed_bytes(plan, placement)
    log.info(
        "%.1f GiB of this GPU are taken before the weights, %.1f are free; this run needs %.1f",
        *(nbytes / GIB for nbytes in (set_aside_bytes, free_bytes, needed)),
    )
    if placement != plan.placement:
        log.info("%d of %d resident blocks fit", placement.resident_blocks, plan.placement.resident_blocks)
    if needed > least:
        log.warning("%.1f GiB are needed, and a GPU has %.1f for them: memory may run out", needed / GIB, least / GIB)
    return placement
