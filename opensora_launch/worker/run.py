"""Run a plan on one rank, from its meshes to its finished videos."""

import os
import socket
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from opensora_launch.model.text_encoders import Embedding
from opensora_launch.parallel.host_memory import free_caches
from opensora_launch.parallel.sharded_model import ShardedModel
from opensora_launch.plan.plan import Plan, VideoRequest
from opensora_launch.rundir import AttemptDir
from opensora_launch.runs.finished_videos import unsettled_videos
from opensora_launch.slurm.task_env import job_name
from opensora_launch.telemetry.events import IMAGE
from opensora_launch.telemetry.heartbeat import Heartbeat
from opensora_launch.worker import watch
from opensora_launch.worker.checkpoint import Checkpoints, Preempted
from opensora_launch.worker.context import RankContext
from opensora_launch.worker.encode_texts import encode_on_team, share_embeddings
from opensora_launch.worker.failures import is_out_of_memory
from opensora_launch.worker.generate import make_videos
from opensora_launch.worker.load_networks import Networks, load_as_planned, shard_model
from opensora_launch.worker.logs import recorded
from opensora_launch.worker.previews import Previews, fit_projection
from opensora_launch.worker.queue import QUEUE_POLL_S, WAIT, Owner, Queue
from opensora_launch.worker.rank import Rank
from opensora_launch.worker.rank_facts import peak_memory_bytes
from opensora_launch.worker.set_up import set_up


def run_plan(plan: Plan, attempt: AttemptDir, me: Rank, beat: Heartbeat, started: tuple[float, float]) -> None:
    """Make this rank's part of the plan's images, then of its videos. started: monotonic and epoch seconds.

    Raises Preempted on all ranks if any of them was asked to stop.
    """
    ctx = set_up(plan, attempt, me, beat, started)
    ctx = replace(ctx, checkpoints=_checkpoints(ctx, attempt))
    with recorded(ctx.recorder), watch.sampling(attempt, me), profiler(plan.profile, attempt.profiler_trace(me.rank)):
        texts = _make_images(ctx, attempt, me) if _lacks_images(ctx) else None
        done = _make_videos(ctx, attempt, me, texts) if plan.videos else []
    ctx.recorder.close(
        peak_memory_bytes(ctx.device),
        done,
        clock_offset_s=watch.clock_offset(me)[0],
        set_aside_bytes=ctx.set_aside_bytes,
    )


def _lacks_images(ctx: RankContext) -> bool:
    """Whether any first frame is still to be made, on all ranks. An earlier start of the job may have made all."""
    if ctx.images is None:
        return False
    lacks = bool(unsettled_videos(ctx.images.run_dir, ctx.images.plan.videos))
    with ctx.recorder.span("setup"):
        return _any(ctx, lacks)


def _any(ctx: RankContext, mine: bool) -> bool:
    """Wait for all ranks, and return whether this is true for any of them."""
    found = torch.tensor([mine], dtype=torch.uint8)
    with ctx.world.record("barrier", ctx.world.ranks, 0):
        dist.all_reduce(found, dist.ReduceOp.MAX, group=ctx.world.group)
    return bool(found)


def _make_images(ctx: RankContext, attempt: AttemptDir, me: Rank) -> Mapping[str, Embedding]:
    """Make the first frames of all videos, and return the embedding of each text of the plan.

    When it returns, the image model is gone from this rank, and the images of all ranks are there or have failed.
    """
    assert ctx.images
    images, beat = replace(ctx.images, checkpoints=_checkpoints(ctx.images, attempt)), ctx.recorder.heartbeat
    encoded = encode_on_team(ctx)
    with ctx.recorder.span(IMAGE):
        beat.images, beat.videos, beat.videos_done = True, len(images.plan.videos), 0
        networks = load_as_planned(images)
        texts = share_embeddings(ctx, encoded)
        model = shard_model(images, networks, dict(images.plan.layouts))
        batches = _batches(images, attempt, me, until_settled=True)
        _, preempted = _make_until_stopped(images, networks, model, texts, batches)
        del networks, model
        free_caches(ctx.device)
        if _any(ctx, preempted):
            raise Preempted
        beat.images, beat.videos, beat.videos_done = False, 0, 0
    return texts


def _make_videos(
    ctx: RankContext, attempt: AttemptDir, me: Rank, texts: Mapping[str, Embedding] | None
) -> Sequence[str]:
    """Make the videos; return the names of those that this rank's group has made. texts: None if not yet encoded."""
    ctx.recorder.heartbeat.videos = len(ctx.plan.videos)
    if texts is None:
        networks, texts = load_networks_and_texts(ctx)
    else:
        networks = load_as_planned(ctx)
    watch.watch_blocks(networks.mmdit, ctx.recorder, streamed=networks.blocks is not None)
    ctx = replace(ctx, previews=_previews(ctx, networks))
    model = shard_model(ctx, networks, dict(ctx.plan.layouts))
    done, preempted = _make_until_stopped(ctx, networks, model, texts, _batches(ctx, attempt, me))
    with ctx.recorder.span("setup"):
        if _any(ctx, preempted):
            raise Preempted
    return done


def _checkpoints(ctx: RankContext, attempt: AttemptDir) -> Checkpoints:
    return Checkpoints(ctx.run_dir.checkpoints, attempt.stop, ctx.plan.checkpoint_every_steps, ctx.mesh.video)


def load_networks_and_texts(ctx: RankContext) -> tuple[Networks, Mapping[str, Embedding]]:
    """Load the networks, and encode every text on the first ranks while the others load."""
    encoded = encode_on_team(ctx)
    networks = load_as_planned(ctx)
    return networks, share_embeddings(ctx, encoded)


def _previews(ctx: RankContext, networks: Networks) -> Previews | None:
    """The previews of this group, on its first rank, if any are wanted."""
    if not ctx.plan.preview_every_steps or ctx.mesh.video.index:
        return None
    with ctx.recorder.span("load"):
        start = ctx.recorder.mark()
        projection = fit_projection(networks.vae, ctx.plan.model.vae).to(ctx.device)
        ctx.recorder.work("preview", start)
    return Previews(ctx.plan, ctx.run_dir, projection)


def _make_until_stopped(
    ctx: RankContext,
    networks: Networks,
    model: ShardedModel,
    texts: Mapping[str, Embedding],
    batches: Iterable[Sequence[VideoRequest]],
) -> tuple[list[str], bool]:
    """Return the names of the videos that this group made, and whether it was asked to stop before the last one.

    A rank that runs out of memory stores its last step, so that a run with fewer weights per rank can resume there.
    """
    try:
        return make_videos(ctx, networks, model, texts, batches), False
    except Preempted:
        return [], True
    except (RuntimeError, OSError, MemoryError) as error:
        if ctx.checkpoints and is_out_of_memory(error):
            ctx.checkpoints.store_last()
        raise


def _batches(
    ctx: RankContext, attempt: AttemptDir, me: Rank, *, until_settled: bool = False
) -> Iterator[tuple[VideoRequest, ...]]:
    """Yield the batches that this group takes from the run's queue. Its first rank takes one and tells the others.

    until_settled: go on until those of other groups are made too.
    """
    axis, beat, batches = ctx.mesh.video, ctx.recorder.heartbeat, ctx.plan.batches
    assert ctx.checkpoints
    owner = Owner(attempt.path.name, me.rank, job_name(os.environ), socket.gethostname(), os.getpid())
    queue = Queue(ctx.run_dir, batches, owner, until_settled=until_settled)
    while True:
        beat.videos_done = beat.videos - len(unsettled_videos(ctx.run_dir, ctx.plan.videos))
        if ctx.checkpoints.asked_to_stop():
            raise Preempted
        taken = [queue.take() if axis.index == 0 else None]
        if axis.size > 1:
            with axis.exchange(0):
                dist.broadcast_object_list(taken, axis.ranks[0], group=axis.group)
        if taken[0] is None:
            return
        if taken[0] == WAIT:
            beat.wait_for_others()
            time.sleep(QUEUE_POLL_S)
        else:
            yield batches[taken[0]]


def profiler(on: bool, path: Path) -> Any:
    """Return a context that writes a Chrome trace, which opens in Perfetto; without `on` it does nothing."""
    if not on:
        return nullcontext()
    path.parent.mkdir(parents=True, exist_ok=True)
    return torch.profiler.profile(on_trace_ready=lambda p: p.export_chrome_trace(str(path)))
