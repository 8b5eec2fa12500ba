"""Set-up phase: numeric settings, device, kernel, telemetry and meshes of this rank."""

import logging
import os
from collections.abc import Sequence

import torch
import torch.distributed as dist

from opensora_launch.model.kernel_choice import choose_kernel
from opensora_launch.parallel.mesh import Axis, Record, build_meshes, node_axis
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.plan import Plan
from opensora_launch.rundir import AttemptDir
from opensora_launch.schema.config import NumericsConfig
from opensora_launch.telemetry.heartbeat import Heartbeat
from opensora_launch.telemetry.recorder import Recorder
from opensora_launch.worker.context import DTYPES, RankContext
from opensora_launch.worker.failures import stop_stalled
from opensora_launch.worker.process_group import BACKSTOP
from opensora_launch.worker.rank import Rank, pick_device
from opensora_launch.worker.rank_facts import device_name, record_facts, telemetry_header
from opensora_launch.worker.watch import clock_offset, watch_kernel


def set_numerics(threads: int, numerics: NumericsConfig) -> None:
    """Let equal inputs give equal bits: fixed thread count, no kernels chosen by timing, products as configured."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cuda.matmul.allow_tf32 = numerics.tf32
    torch.backends.cudnn.allow_tf32 = numerics.tf32
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = numerics.reduced_sums
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = numerics.reduced_sums
    torch.set_grad_enabled(False)


log = logging.getLogger("opensora_launch.worker")


def set_up(
    plan: Plan,
    attempt: AttemptDir,
    me: Rank,
    beat: Heartbeat,
    started: tuple[float, float],
    *,
    more: Sequence[Layout] = (),
) -> RankContext:
    """Return the context of this rank, with meshes for the plan's layouts and for some more.

    started: monotonic and epoch seconds. All ranks call this together.
    """
    set_numerics(plan.threads_per_rank, plan.numerics)
    device = pick_device(plan.machine.device, me)
    head_dim = plan.model.mmdit.hidden_size // plan.model.mmdit.num_heads
    kernel = choose_kernel(plan.attention, device=device, dtype=DTYPES[plan.precision], head_dim=head_dim)
    cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    chosen = f"{kernel.name} {kernel.version}"
    log.info("%s, %s, attention by %s, CPUs %s", device_name(device), plan.precision, chosen, cpus)
    header = telemetry_header(plan, me, device, kernel.name, started)
    header["clock_offset_s"], header["clock_offset_error_s"] = clock_offset(me)
    recorder = Recorder(attempt.events(me.rank), header, device=device.type, heartbeat=beat)
    beat.watch(plan.timeout_s, lambda verdict: stop_stalled(attempt, verdict))
    with recorder.span("setup"), recorder.collective("barrier", tuple(range(me.world)), 0):
        layouts = dict.fromkeys([*(layout for _, layout in plan.layouts), *more])
        meshes = build_meshes(layouts, me.rank, BACKSTOP, recorder.collective)
        world = _world_axis(me, recorder.collective)
        mesh = meshes[plan.layouts[-1][1]]
        node = node_axis(mesh.video, me.local_world, me.world, BACKSTOP)
    return RankContext(
        plan=plan,
        run_dir=attempt.run,
        device=device,
        kernel=watch_kernel(kernel, recorder),
        meshes=meshes,
        mesh=mesh,
        world=world,
        node=node,
        recorder=recorder,
        facts=record_facts(plan.engine, device, kernel.name),
    )


def _world_axis(me: Rank, record: Record) -> Axis:
    ranks = tuple(range(me.world))
    return Axis("text", ranks, me.rank, dist.new_group(list(ranks), timeout=BACKSTOP), record)
