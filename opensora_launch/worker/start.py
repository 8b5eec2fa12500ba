"""A rank comes up and goes down: environment, process group, logs, and what happens when something fails."""

import logging
import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from types import FrameType
from typing import NoReturn

import torch
import torch.distributed as dist

from opensora_launch import exit_codes
from opensora_launch.errors import UserError
from opensora_launch.rundir import AttemptDir
from opensora_launch.schema.config import NumericsConfig
from opensora_launch.slurm import task_env as slurm_env
from opensora_launch.telemetry.failure import Failure, read_failure, record_failure
from opensora_launch.telemetry.heartbeat import Heartbeat, read_heartbeats
from opensora_launch.telemetry.stall import find_guilty
from opensora_launch.worker import rendezvous

LAUNCHED = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "LOCAL_WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")
PEER_ERRORS = (
    "Connection closed by peer",
    "Connection reset by peer",
    "Timed out waiting",
    "Broken pipe",
    "Connection refused",
    "remote process exited",
    "NCCL communicator was aborted",
)
RENDEZVOUS = timedelta(minutes=5)  # for all ranks to come up
MESH = timedelta(minutes=1)  # for ranks that have met already to connect to one another
PEER_GRACE_S = 2.0  # how long a rank that lost a peer waits for that peer's own word

log = logging.getLogger("opensora_launch.worker")


@dataclass(frozen=True)
class Rank:
    """Who we are among the ranks."""

    rank: int
    local_rank: int
    world: int
    local_world: int
    starter: str = ""  # "torchrun", "srun", or neither

    @classmethod
    def from_env(cls, env: Mapping[str, str]) -> "Rank":
        """From torchrun's variables, or else from those of the step that srun has started; else we are the only rank.

        Raises UserError where both are there and do not fit together.
        """
        step = slurm_env.read_step(env)
        if "RANK" not in env:
            counts = (step.rank, step.local_rank, step.tasks, step.local_tasks) if step else (0, 0, 1, 1)
            return cls(*counts, starter="srun" if step else "")
        if missing := [name for name in LAUNCHED if name not in env]:
            raise UserError(f"RANK is set but {', '.join(missing)} is not: start ranks with torchrun, or unset RANK")
        rank, local_rank, world, local_world = (int(env[name]) for name in LAUNCHED[:4])
        if step is not None:
            slurm_env.refuse_two_worlds(step, world, local_world)
        return cls(rank, local_rank, world, local_world, "torchrun")


def open_log(path: Path) -> None:
    """From here on, what this process and its libraries print goes to `path`."""
    path.parent.mkdir(parents=True, exist_ok=True)
    sys.stdout.flush()
    sys.stderr.flush()
    target = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o644)
    os.dup2(target, 1)
    os.dup2(target, 2)
    os.close(target)


def start_logging(me: Rank) -> None:
    logging.basicConfig(stream=sys.stdout, level=logging.INFO, force=True)
    logging.getLogger().handlers[0].setFormatter(_form(me))
    logging.getLogger("httpx").setLevel(logging.WARNING)


def keep_log(path: Path, me: Rank) -> None:
    """From here on, what is logged goes to `path` too, unless standard output is there already, as under srun."""
    if path.exists() and os.path.samestat(os.fstat(sys.stdout.fileno()), path.stat()):
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handler = logging.FileHandler(path, encoding="utf-8")
    handler.setFormatter(_form(me))
    logging.getLogger().addHandler(handler)


def _form(me: Rank) -> logging.Formatter:
    return logging.Formatter(f"%(asctime)s rank {me.rank} %(message)s", datefmt="%H:%M:%S")


def pick_device(kind: str, me: Rank) -> torch.device:
    """This rank's device. A site may show each rank its own GPU only, or all of the node's."""
    if kind == "cpu":
        return torch.device("cpu")
    visible = torch.cuda.device_count()
    if visible == 0:
        raise UserError("topology.device=cuda, but torch sees no GPU: check the driver, or use topology.device=cpu")
    if 1 < visible < me.local_world:
        raise UserError(
            f"{me.local_world} ranks on {socket.gethostname()} see only {visible} GPUs: "
            f"lower topology.gpus_per_node or widen CUDA_VISIBLE_DEVICES"
        )
    index = me.local_rank if visible >= me.local_world else 0
    torch.cuda.set_device(index)
    return torch.device("cuda", index)


def gpus_visible() -> bool:
    return torch.cuda.is_available() and torch.cuda.device_count() > 0


def has_peers(env: Mapping[str, str]) -> bool:
    """Whether others may wait for us, by all that the environment says before it is understood."""
    step = slurm_env.read_step(env)
    return "RANK" in env or (step is not None and step.tasks > 1)


def join(me: Rank) -> None:
    """The one place where the process group is made. Bounded: a rank that does not come up is an error.

    Raises Unreachable in a batch job whose ranks do not find each other.
    """
    backend = "cpu:gloo,cuda:nccl" if gpus_visible() else "gloo"
    if me.starter == "srun" and me.world > 1:
        host, port = slurm_env.head_host(os.environ), slurm_env.head_port(os.environ)
        within_s = float(os.environ.get("CONNECT_TIMEOUT_S", rendezvous.CONNECT_S))
        store = rendezvous.meet(me.rank, me.world, host, port, within_s)
        dist.init_process_group(backend, store=store, rank=me.rank, world_size=me.world, timeout=MESH)
    elif me.starter == "torchrun":
        dist.init_process_group(backend, timeout=RENDEZVOUS)
    else:
        alone = torch.distributed.HashStore()  # type: ignore[attr-defined]
        dist.init_process_group(backend, store=alone, rank=0, world_size=1)


def listen_for_stop(attempt: AttemptDir, me: Rank) -> None:
    """SIGUSR1, and in a batch job SIGTERM, leave the file that asks every rank of the attempt to store and stop."""

    def ask(signum: int, frame: FrameType | None) -> None:
        attempt.stop.touch()

    signal.signal(signal.SIGUSR1, ask)
    if me.starter == "srun":
        signal.signal(signal.SIGTERM, ask)


def record_early(attempt: AttemptDir, error: Exception, env: Mapping[str, str]) -> None:
    """The failure of a rank that is not among the others yet."""
    rank = int(env.get("RANK") or env.get("SLURM_PROCID") or 0)
    kind = "user" if isinstance(error, UserError) else "failure"
    failure = Failure(rank=rank, host=socket.gethostname(), kind=kind, message=str(error), phase="setup")
    record_failure(attempt, failure)


def set_numerics(threads: int, numerics: NumericsConfig) -> None:
    """Same inputs, same bits: fixed thread count, no kernels picked by timing them, products as they are said."""
    torch.set_num_threads(threads)
    torch.backends.cudnn.benchmark = False
    torch.backends.cudnn.deterministic = True
    torch.backends.cuda.matmul.allow_tf32 = numerics.tf32
    torch.backends.cudnn.allow_tf32 = numerics.tf32
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = numerics.reduced_sums
    torch.backends.cuda.matmul.allow_fp16_reduced_precision_reduction = numerics.reduced_sums
    torch.set_grad_enabled(False)


def fail(error: BaseException, attempt: AttemptDir, me: Rank, beat: Heartbeat) -> int:
    """Record the failure, if it is the run's first; the exit code to leave with.

    The process group is not destroyed: on an error that can wait for peers forever. Ctrl-C is no failure.
    """
    if isinstance(error, KeyboardInterrupt):
        log.info("interrupted in phase %s, step %s", beat.phase, beat.step)
        beat.close("failed")
        return exit_codes.INTERRUPTED
    log.error("failed in phase %s, step %s", beat.phase, beat.step, exc_info=error)
    if is_peer_error(error):
        failure = peer_failure(attempt, me)
    else:
        kind = "user" if isinstance(error, UserError) else "memory" if is_out_of_memory(error) else "failure"
        failure = Failure(
            rank=me.rank,
            host=socket.gethostname(),
            kind=kind,
            message=str(error) if kind == "user" else f"{type(error).__name__}: {error}",
            phase=beat.phase,
            step=beat.step,
            collective=beat.collective[0] if beat.collective and beat.inside else None,
            traceback="".join(traceback.format_exception(error)),
        )
    if failure:
        record_failure(attempt, failure)
    beat.close("failed")
    return exit_codes.USER_ERROR if failure and failure.kind == "user" else exit_codes.FAILURE


def is_peer_error(error: BaseException) -> bool:
    """Whether another rank's end is all that this error tells."""
    return isinstance(error, RuntimeError) and any(text in str(error) for text in PEER_ERRORS)


def is_out_of_memory(error: BaseException) -> bool:
    """Of a GPU, or of a host whose allocator says so before the kernel ends the process."""
    said = isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    return said or isinstance(error, torch.OutOfMemoryError | MemoryError)


def peer_failure(attempt: AttemptDir, me: Rank) -> Failure | None:
    """A peer is gone. None if it said why within a moment; else what its heartbeat tells of its end."""
    deadline = time.monotonic() + PEER_GRACE_S
    while time.monotonic() < deadline:
        if read_failure(attempt):
            return None
        time.sleep(0.05)
    beats = read_heartbeats(attempt.heartbeats)
    if dead := [b for b in beats if b.state == "running" and b.host == socket.gethostname() and not lives(b.pid)]:
        gone = dead[0]
        where = f"phase {gone.phase}" + (f", step {gone.step} of {gone.video}" if gone.step is not None else "")
        return stalled_failure(
            attempt,
            gone.rank,
            f"rank {gone.rank} (pid {gone.pid}) died without a word in {where}: killed, or out of memory",
        )
    verdict = find_guilty(beats, time.time(), me.rank)
    return stalled_failure(attempt, verdict.rank, verdict.message)


def stalled_failure(attempt: AttemptDir, rank: int | None, message: str) -> Failure:
    """The record of a rank that cannot write its own, with what its last heartbeat says."""
    beat = next((b for b in read_heartbeats(attempt.heartbeats) if b.rank == rank), None)
    if rank is None or beat is None:
        return Failure(rank=-1 if rank is None else rank, host="unknown", kind="stalled", message=message)
    return Failure(
        rank=rank,
        host=beat.host,
        kind="stalled",
        message=message,
        phase=beat.phase,
        step=beat.step,
        collective=beat.collective,
    )


def lives(pid: int) -> bool:
    """Whether a process of this host still runs; a zombie does not."""
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def leave(code: int) -> NoReturn:
    logging.shutdown()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(code)
