"""One rank from its first line to its exit code: it joins the others, does the work, and ends without hanging."""

import json
import os
import socket
import sys
import time
from collections.abc import Sequence
from pathlib import Path

import torch.distributed as dist

from opensora_launch import exit_codes
from opensora_launch.errors import UserError
from opensora_launch.machine.host import count_cpus
from opensora_launch.plan.plan import Plan
from opensora_launch.plan.verify_spec import VerifySpec
from opensora_launch.rundir import AttemptDir
from opensora_launch.telemetry.heartbeat import Heartbeat
from opensora_launch.worker import start
from opensora_launch.worker.checkpoint import Preempted
from opensora_launch.worker.rendezvous import Unreachable
from opensora_launch.worker.run import run_plan
from opensora_launch.worker.start import Rank
from opensora_launch.worker.verify import run_verify


def run_rank(argv: Sequence[str]) -> int:
    """`--attempt DIR`, `--verify DIR`, or the overrides and flags of `generate`; the exit code.

    Where there are other ranks, a failure ends this process here and now: they must not wait for it.
    """
    started = (time.monotonic(), time.time())
    launched = len(argv) == 2 and argv[0] in ("--attempt", "--verify")
    try:
        me = Rank.from_env(os.environ)
        alone = me.starter != "torchrun" and me.world == 1
        if launched and not alone:
            start.open_log(AttemptDir(Path(argv[1])).log(me.rank))
        start.start_logging(me)
        start.join(me)
        attempt, work = _agree(argv, me, launched)
        if alone or not launched:  # what it prints is seen, and is kept too
            start.keep_log(attempt.log(me.rank), me)
    except (UserError, Unreachable) as e:
        sys.stderr.write(f"error: {e}\n")
        code = exit_codes.USER_ERROR if isinstance(e, UserError) else exit_codes.FAILURE
        if launched:
            start.record_early(AttemptDir(Path(argv[1])), e, os.environ)
        if start.has_peers(os.environ):
            start.leave(code)  # they may be in the rendezvous
        return code
    beat = Heartbeat(attempt.heartbeat(me.rank), rank=me.rank, host=socket.gethostname())
    beat.start()
    start.listen_for_stop(attempt, me)
    try:
        if isinstance(work, VerifySpec):
            run_verify(work, attempt, me, beat)
        else:
            run_plan(work, attempt, me, beat, started)
    except Preempted:
        beat.close("preempted")
        if me.world > 1:
            start.leave(exit_codes.PREEMPTED)
        dist.destroy_process_group()
        return exit_codes.PREEMPTED
    except BaseException as e:  # noqa: BLE001 an interrupt too is a failure that other ranks must learn of
        code = start.fail(e, attempt, me, beat)
        if me.world > 1:
            start.leave(code)
        return code
    beat.close("done")
    dist.destroy_process_group()
    if not launched and me.rank == 0:
        _report(attempt)
    return 0


def _agree(argv: Sequence[str], me: Rank, launched: bool) -> tuple[AttemptDir, Plan | VerifySpec]:
    """The attempt's folder and what to do, which the first rank reads, or makes, and sends to the others."""
    verify = launched and argv[0] == "--verify"
    said: list[tuple[str, str, str] | None] = [None]
    if me.rank == 0:
        try:
            attempt = AttemptDir(Path(argv[1])) if launched else _prepare(argv, me)
            file = attempt.verify_spec if verify else attempt.plan
            said = [(str(attempt), file.read_text(encoding="utf-8"), "")]
        except UserError as e:
            said = [("", "", str(e))]
    if me.world > 1:
        dist.broadcast_object_list(said, 0)
    assert said[0] is not None
    folder, text, problem = said[0]
    if problem:
        raise UserError(problem if me.rank == 0 else "rank 0 found the run impossible, and says why")
    attempt = AttemptDir(Path(folder))
    attempt.path.mkdir(parents=True, exist_ok=True)  # a host that does not share the first rank's disk
    data = json.loads(text)
    if verify:
        return attempt, VerifySpec.from_dict(data)
    plan = Plan.from_dict(data)
    if plan.machine.ranks != me.world:
        raise UserError(
            f"{folder} is planned for {plan.machine.ranks} ranks and {me.world} have come; plan it anew for these: "
            f"opensora-launch generate --resume {attempt.run} topology=..."
        )
    return attempt, plan


def _prepare(argv: Sequence[str], me: Rank) -> AttemptDir:
    """Write a run from the command line of `generate`, for the ranks that are here."""
    from opensora_launch.plan.plan import Machine
    from opensora_launch.request.attempt import prepare_attempt

    device = "cuda" if start.gpus_visible() else "cpu"
    cpus = count_cpus() * (me.local_world if me.starter == "srun" else 1)  # srun's ranks have their own share by now
    return prepare_attempt(argv, Machine(device, me.world // me.local_world, me.local_world, cpus))


def _report(attempt: AttemptDir) -> None:
    """Ranks that were started by hand have no launcher that would build the report."""
    from opensora_launch.report.build import build_report, summary_lines

    sys.stdout.write("\n".join([*summary_lines(build_report(attempt.run.path)), f"run: {attempt.run}", ""]))
