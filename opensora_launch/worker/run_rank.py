"""One rank from start to exit code: it joins the others, does the work, and ends without hanging."""

import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
import torch.distributed as dist

from opensora_launch import exit_codes
from opensora_launch.errors import UserError
from opensora_launch.machine.host import count_cpus
from opensora_launch.plan.plan import Plan
from opensora_launch.plan.verify_spec import VerifySpec
from opensora_launch.rundir import AttemptDir
from opensora_launch.runs.finished_videos import failed_videos
from opensora_launch.telemetry.heartbeat import Heartbeat
from opensora_launch.worker.checkpoint import Preempted, listen_for_stop
from opensora_launch.worker.failures import fail, leave, record_early
from opensora_launch.worker.logs import keep_log, redirect_output, start_logging
from opensora_launch.worker.process_group import Unreachable, join
from opensora_launch.worker.rank import Rank, gpus_visible, may_have_peers
from opensora_launch.worker.run import run_plan
from opensora_launch.worker.verify import run_verify


def run_rank(argv: Sequence[str]) -> int:
    """Run one rank and return its exit code. argv: `--attempt DIR`, `--verify DIR`, or the arguments of `generate`.

    If there are other ranks, a failure ends this process at once: they must not wait for it.
    """
    started = (time.monotonic(), time.time())
    launched = len(argv) == 2 and argv[0] in ("--attempt", "--verify")
    try:
        me = Rank.from_env(os.environ)
        alone = me.starter != "torchrun" and me.world == 1
        logs = None
        if launched and not alone:
            folder = AttemptDir(Path(argv[1]))
            logs = folder if folder.log(me.rank).exists() else None  # srun made it, as for every rank
            redirect_output(folder.log(me.rank))
        start_logging(me)
        join(me, logs)
        attempt, work = _agree(argv, me, launched)
        if alone or not launched:  # its output is visible, and is stored too
            keep_log(attempt.log(me.rank))
    except (UserError, Unreachable) as e:
        sys.stderr.write(f"error: {e}\n")
        code = exit_codes.USER_ERROR if isinstance(e, UserError) else exit_codes.FAILURE
        if launched:
            record_early(AttemptDir(Path(argv[1])), e, os.environ)
        if may_have_peers(os.environ):
            leave(code)  # they may be in the rendezvous
        return code
    beat = Heartbeat(attempt.heartbeat(me.rank), rank=me.rank, host=socket.gethostname())
    beat.start()
    listen_for_stop(attempt, in_batch_job=me.starter == "srun")
    try:
        if isinstance(work, VerifySpec):
            run_verify(work, attempt, me, beat)
        else:
            run_plan(work, attempt, me, beat, started)
    except Preempted:
        beat.close("preempted")
        if me.world > 1:
            leave(exit_codes.PREEMPTED)
        dist.destroy_process_group()
        return exit_codes.PREEMPTED
    except BaseException as e:  # noqa: BLE001 other ranks must learn of any failure, even an interrupt
        code = fail(e, attempt, me, beat)
        if me.world > 1:
            leave(code)
        return code
    beat.close("done")
    dist.destroy_process_group()
    if not launched and me.rank == 0:
        return _report(attempt)
    return 0


def _agree(argv: Sequence[str], me: Rank, launched: bool) -> tuple[AttemptDir, Plan | VerifySpec]:
    """Return the attempt and its work, which the first rank reads, or prepares, and sends to the others.

    Raises UserError on all ranks if the run is impossible, or was planned for another number of ranks.
    """
    verify = launched and argv[0] == "--verify"
    shared: list[tuple[str, str, str] | None] = [None]
    if me.rank == 0:
        try:
            attempt = AttemptDir(Path(argv[1])) if launched else _prepare(argv, me)
            file = attempt.verify_spec if verify else attempt.plan
            shared = [(str(attempt), file.read_text(encoding="utf-8"), "")]
        except UserError as e:
            shared = [("", "", str(e))]
    if me.world > 1:
        dist.broadcast_object_list(shared, 0)
    assert shared[0] is not None
    folder, text, problem = shared[0]
    if problem:
        raise UserError(problem if me.rank == 0 else "the run is impossible; rank 0 reports why")
    attempt = AttemptDir(Path(folder))
    attempt.path.mkdir(parents=True, exist_ok=True)  # this host may not share the first rank's disk
    data = json.loads(text)
    if verify:
        return attempt, msgspec.convert(data, VerifySpec)
    plan = Plan.from_dict(data)
    if plan.machine.ranks != me.world:
        raise UserError(
            f"{folder} was planned for {plan.machine.ranks} ranks, but {me.world} started. Plan again with "
            f"opensora-launch generate --resume {attempt.run} topology=..."
        )
    return attempt, plan


def _prepare(argv: Sequence[str], me: Rank) -> AttemptDir:
    """Prepare a run from the arguments of `generate`, for the ranks that have started."""
    from opensora_launch.plan.plan import Machine
    from opensora_launch.request.attempt import prepare_attempt

    device = "cuda" if gpus_visible() else "cpu"
    cpus = count_cpus() * (me.local_world if me.starter == "srun" else 1)  # srun's ranks are bound to their share
    return prepare_attempt(argv, Machine(device, me.world // me.local_world, me.local_world, cpus))


def _report(attempt: AttemptDir) -> int:
    """Build and print the report of ranks that were started by hand: no launcher does it for them. The exit code."""
    from opensora_launch.report.build import build_report
    from opensora_launch.report.markdown import summary_lines

    report = build_report(attempt.run.path, waiting=True)
    sys.stdout.write("\n".join([*summary_lines(report), f"run: {attempt.run}", ""]))
    failed = failed_videos(attempt.run)
    sys.stderr.writelines(f"{video} failed: {reason}\n" for video, reason in failed.items())
    return exit_codes.FAILURE if failed else exit_codes.DONE
