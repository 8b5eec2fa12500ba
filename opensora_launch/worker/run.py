"""A plan on one rank, from its meshes to its finished videos."""

import importlib.metadata
import logging
import os
import platform
import resource
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from opensora_launch import exit_codes
from opensora_launch.engines.choice import attention_of, cuts_weights
from opensora_launch.engines.native import Source
from opensora_launch.engines.text_team import Team, text_team
from opensora_launch.model.attention import Kernel, choose_attention
from opensora_launch.parallel.mesh import Axis, Mesh, Record, build_meshes, node_axis
from opensora_launch.parallel.rows import ShardedModel
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.plan import Plan, VideoRequest
from opensora_launch.rundir import AttemptDir
from opensora_launch.schema.config import Engine, Init, Shard
from opensora_launch.slurm.task_env import job_name
from opensora_launch.telemetry.failure import record_failure
from opensora_launch.telemetry.heartbeat import Heartbeat
from opensora_launch.telemetry.recorder import Recorder
from opensora_launch.telemetry.stall import Verdict
from opensora_launch.worker import start, watch
from opensora_launch.worker.checkpoint import Checkpoints, Preempted
from opensora_launch.worker.generate import DTYPES, Job, generate
from opensora_launch.worker.networks import Networks, read_networks
from opensora_launch.worker.queue import LOOK_S, WAIT, Owner, Queue, finished
from opensora_launch.worker.start import Rank
from opensora_launch.worker.texts import Embedding, TextCache, distinct_texts, encode_texts, share_embeddings

BACKSTOP = timedelta(days=1)  # of collectives; a rank that stalls is found much sooner, by the heartbeat's watch

log = logging.getLogger("opensora_launch.worker")


@dataclass(frozen=True)
class Site:
    """Where a rank works: all its meshes, and the ranks of the whole run as one axis."""

    job: Job
    kernel: Kernel
    meshes: Mapping[Layout, Mesh]
    world: Axis
    node: Axis  # the ranks of this node that work on the same videos

    def model(self, networks: Networks, layouts: Mapping[int, Layout]) -> ShardedModel:
        """`layouts`: by the number of rows of a step."""
        meshes = {rows: self.meshes[layout] for rows, layout in layouts.items()}
        sit_out = networks.blocks.pass_through if networks.blocks else None
        at_once, attention = self.job.plan.placement.rows_at_once, attention_of(self.job.plan.engine)
        return ShardedModel(networks.mmdit.forward, self.kernel.call, meshes, sit_out, at_once, attention)


def run_plan(plan: Plan, attempt: AttemptDir, me: Rank, beat: Heartbeat, started: tuple[float, float]) -> None:
    """Make this rank's part of the plan's videos. `started` is monotonic and epoch seconds."""
    site = settle(plan, attempt, me, beat, started)
    job, world = site.job, site.world
    job = replace(job, checkpoints=_checkpoints(job, attempt))
    beat.videos = len(plan.videos)
    with watch.sampling(attempt, me), profiler(plan.profile, attempt.profiler_trace(me.rank)):
        networks, texts = load(site)
        watch.watch_blocks(networks.mmdit, job.recorder, streamed=networks.blocks is not None)
        model = site.model(networks, dict(plan.layouts))
        done, preempted = _generate(job, networks, model, texts, _batches(job, attempt, me))
    with job.recorder.span("setup"), world.record("barrier", world.ranks, 0):
        stop = torch.tensor([preempted], dtype=torch.uint8)
        dist.all_reduce(stop, dist.ReduceOp.MAX, group=world.group)
    if stop.item():
        raise Preempted
    job.recorder.close(peak_memory_bytes(job.device), done, clock_offset_s=watch.clock_offset(me)[0])


def _generate(
    job: Job,
    networks: Networks,
    model: ShardedModel,
    texts: Mapping[str, Embedding],
    batches: Iterable[Sequence[VideoRequest]],
) -> tuple[list[str], bool]:
    """Names of the videos that this group has made, and whether it was asked to stop before there were no more.

    A rank that runs out of memory stores what its last step left: a run with less of its weights here goes on from it.
    """
    try:
        return generate(job, networks, model, texts, batches), False
    except Preempted:
        return [], True
    except (RuntimeError, MemoryError) as error:
        if job.checkpoints and start.is_out_of_memory(error):
            job.checkpoints.store_last()
        raise


def _checkpoints(job: Job, attempt: AttemptDir) -> Checkpoints:
    return Checkpoints(job.run_dir.checkpoints, attempt.stop, job.plan.checkpoint_every_steps, job.mesh.video)


def _batches(job: Job, attempt: AttemptDir, me: Rank) -> Iterator[tuple[VideoRequest, ...]]:
    """Those that this group gets from the run's queue: its first rank takes one, and tells the others."""
    axis, beat, everything = job.mesh.video, job.recorder.heartbeat, job.plan.batches
    assert job.checkpoints
    owner = Owner(attempt.path.name, me.rank, job_name(os.environ), socket.gethostname(), os.getpid())
    queue = Queue(job.run_dir, everything, owner)
    while True:
        beat.videos_done = sum(finished(job.run_dir, [video]) for video in job.plan.videos)
        if job.checkpoints.asked_to_stop():
            raise Preempted
        taken = [queue.take() if axis.index == 0 else None]
        if axis.size > 1:
            with axis.exchange(0):
                dist.broadcast_object_list(taken, axis.ranks[0], group=axis.group)
        if taken[0] is None:
            return
        if taken[0] == WAIT:
            beat.wait_for_others()
            time.sleep(LOOK_S)
        else:
            yield everything[taken[0]]


def settle(
    plan: Plan,
    attempt: AttemptDir,
    me: Rank,
    beat: Heartbeat,
    started: tuple[float, float],
    *,
    more: Sequence[Layout] = (),
) -> Site:
    """Device, kernel, telemetry and meshes of this rank, for the plan's layouts and some more."""
    start.set_numerics(plan.threads_per_rank, plan.numerics)
    device = start.pick_device(plan.machine.device, me)
    kernel = choose_attention(
        plan.attention,
        device=device,
        dtype=DTYPES[plan.precision],
        head_dim=plan.model.mmdit.hidden_size // plan.model.mmdit.num_heads,
    )
    cpus = ",".join(map(str, sorted(os.sched_getaffinity(0))))
    of_kernel = f"{kernel.name} {kernel.version}"
    log.info("%s, %s, attention by %s, CPUs %s", device_name(device), plan.precision, of_kernel, cpus)
    recorder = Recorder(
        attempt.events(me.rank),
        _meta(plan, me, device, kernel, started) | _clock(me),
        device=device.type,
        heartbeat=beat,
    )
    beat.watch(plan.timeout_s, lambda verdict: stop_stalled(attempt, verdict))
    with recorder.span("setup"), recorder.collective("barrier", tuple(range(me.world)), 0):
        layouts = dict.fromkeys([*(layout for _, layout in plan.layouts), *more])
        meshes = build_meshes(layouts, me.rank, BACKSTOP, recorder.collective)
        world = world_axis(me, recorder.collective)
        mesh = meshes[plan.layouts[-1][1]]
        node = node_axis(mesh.video, me.local_world, me.world, BACKSTOP)
    job = Job(plan, attempt.run, device, mesh, recorder, _facts(plan.engine, device, kernel))
    return Site(job, watch.watch_kernel(kernel, recorder), meshes, world, node)


def load(site: Site) -> tuple[Networks, Mapping[str, Embedding]]:
    """The networks, and every text's embedding: encoded on the first rank while the others load."""
    job, plan, device = site.job, site.job.plan, site.job.device
    dtype = DTYPES[plan.precision]
    texts, encoded = distinct_texts(plan.videos), None
    team = text_team(plan.engine, site.world, job.mesh, plan.model, (device, dtype))
    if site.world.index in team.axis.ranks:
        with job.recorder.span("text"):
            encoded = _encode(plan, team, device, dtype)
    with job.recorder.span("load"):
        source, beat = Source(plan.model, device, dtype), job.recorder.heartbeat
        shared_by = job.mesh.video.size if plan.placement.shard is Shard.all else site.node.size
        beat.loading(source.nbytes // (job.mesh.tp.size if cuts_weights(plan.engine, job.mesh) else shared_by))
        networks = read_networks(source, plan.engine, plan.placement, site.node, job.mesh, beat.loaded)
    with job.recorder.span("text"):
        return networks, share_embeddings(site.world, texts, encoded)


def _encode(plan: Plan, team: Team, device: torch.device, dtype: torch.dtype) -> list[Embedding] | None:
    """On the team's first rank every text's embedding; None on those that only help."""
    if team.axis.index > 0:
        team.help()
        return None
    folder, cached = plan.text_cache, plan.model.init is Init.checkpoint
    cache = TextCache.of(Path(folder), plan.model, device_name(device), dtype) if folder and cached else None
    encoded = encode_texts(plan.model, distinct_texts(plan.videos), team.encode, dtype, cache)
    team.dismiss()
    return encoded


def world_axis(me: Rank, record: Record) -> Axis:
    ranks = tuple(range(me.world))
    return Axis("text", ranks, me.rank, dist.new_group(list(ranks), timeout=BACKSTOP), record)


def stop_stalled(attempt: AttemptDir, verdict: Verdict) -> None:
    """Called from the heartbeat's thread while this rank waits in a collective that will not end."""
    log.error("stalled: %s", verdict.message)
    record_failure(attempt, start.stalled_failure(attempt, verdict.rank, verdict.message))
    start.leave(exit_codes.FAILURE)


def _meta(plan: Plan, me: Rank, device: torch.device, kernel: Kernel, started: tuple[float, float]) -> dict[str, Any]:
    return {
        "rank": me.rank,
        "world": me.world,
        "local_rank": me.local_rank,
        "host": socket.gethostname(),
        "device_name": device_name(device),
        "threads": plan.threads_per_rank,
        "start_s": started[0],
        "start_epoch_s": started[1],
        "layouts": {str(rows): str(layout) for rows, layout in plan.layouts},
        "attention": kernel.name,
        "pid": os.getpid(),
        "device_uuid": watch.device_uuid(device),
        "versions": _versions(plan.engine),
    }


def _clock(me: Rank) -> dict[str, Any]:
    offset_s, error_s = watch.clock_offset(me)
    return {"clock_offset_s": offset_s, "clock_offset_error_s": error_s}


def _facts(engine: Engine, device: torch.device, kernel: Kernel) -> dict[str, Any]:
    return {
        "engine": engine,
        "device": device_name(device),
        "attention": kernel.name,
        "versions": _versions(engine),
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
    }


def _versions(engine: Engine) -> dict[str, str]:
    """Of Python and packages; of the libraries that torch was built with, where it was."""
    packages = ["opensora-launch", "torch", "transformers", "safetensors", "av", "hydra-core"]
    packages += ["colossalai"] if engine is Engine.colossalai else []
    found = {"python": platform.python_version(), **{p: _version(p) for p in packages}}
    if torch.version.cuda:
        found["cuda"] = torch.version.cuda
        found["cudnn"] = str(torch.backends.cudnn.version())
        if dist.is_nccl_available():
            found["nccl"] = ".".join(map(str, torch.cuda.nccl.version()))
    return found


def _version(package: str) -> str:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


def device_name(device: torch.device) -> str:
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.machine()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("model name")), platform.machine())


def peak_memory_bytes(device: torch.device) -> int:
    """Of the GPU, or of this process on a CPU."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def profiler(on: bool, path: Path) -> Any:
    """A context that writes a Chrome trace, which opens in Perfetto; nothing when off."""
    if not on:
        return nullcontext()
    path.parent.mkdir(parents=True, exist_ok=True)
    return torch.profiler.profile(on_trace_ready=lambda p: p.export_chrome_trace(str(path)))
