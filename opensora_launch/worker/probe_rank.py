"""`python -m opensora_launch.worker.probe_rank FOLDER`: one rank of doctor's short test of devices and links."""

import json
import os
import socket
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from dataclasses import asdict
from datetime import timedelta
from pathlib import Path

import msgspec
import torch
import torch.distributed as dist
from torch import Tensor

from opensora_launch import exit_codes
from opensora_launch.doctor.probe import AxisSpeed, ProbeResult, ProbeSpec, RankSeen
from opensora_launch.errors import UserError
from opensora_launch.machine.output import secure_output
from opensora_launch.parallel.mesh import Axis, Groups, build_meshes
from opensora_launch.schema.config import NumericsConfig
from opensora_launch.worker.failures import leave
from opensora_launch.worker.logs import redirect_output
from opensora_launch.worker.numerics import set_numerics
from opensora_launch.worker.process_group import Unreachable, gathered, join
from opensora_launch.worker.rank import Rank, pick_device
from opensora_launch.worker.rank_facts import device_uuid
from opensora_launch.worker.watch import clock_offset

WARM_UP = 2  # NCCL connects at the first exchange


def main(argv: Sequence[str]) -> int:
    """Answer FOLDER/spec.json with FOLDER/probe.json, and return the exit code. A failure ends this process at once."""
    folder = Path(argv[0])
    me = Rank.from_env(os.environ)
    redirect_output(folder / f"rank{me.rank}.log")
    try:
        spec = msgspec.json.decode((folder / "spec.json").read_bytes(), type=ProbeSpec)
        set_numerics(spec.threads_per_rank, NumericsConfig())
        device = pick_device(spec.device, me)
        join(me, timeout=timedelta(seconds=spec.timeout_s))
        result = probe_links(spec, me, device)
    except (UserError, Unreachable, RuntimeError, OSError) as error:
        sys.stderr.write(f"error: {error}\n")
        leave(exit_codes.FAILURE)
    if me.rank == 0:
        (folder / "probe.json").write_text(json.dumps(asdict(result)), encoding="utf-8")
    dist.destroy_process_group()
    return 0


def probe_links(spec: ProbeSpec, me: Rank, device: torch.device) -> ProbeResult:
    """Find which rank is where, and how fast each axis is. All ranks call this together."""
    found = sorted(gathered(_see(me, device)), key=lambda seen: seen.rank)
    groups = Groups(timedelta(seconds=spec.timeout_s))
    mesh = build_meshes([spec.layout], me.rank, groups, lambda axis, ranks, nbytes: nullcontext())[spec.layout]
    tests = [(mesh.tp, all_reduce), (mesh.ulysses, all_to_all), (mesh.ring, ring), (mesh.cfg, all_gather)]
    speeds = [_speed(spec, axis, exchange, device) for axis, exchange in tests if axis.size > 1]
    return ProbeResult(tuple(found), tuple(speeds))


def all_to_all(axis: Axis, sent: Tensor, got: Tensor) -> int:
    """Exchange as Ulysses does, and return the bytes that leave this rank. So do the other exchanges."""
    dist.all_to_all_single(got, sent, group=axis.group)
    return sent.nbytes * (axis.size - 1) // axis.size


def all_reduce(axis: Axis, sent: Tensor, got: Tensor) -> int:
    """Exchange as results of cut weights are summed."""
    dist.all_reduce(got.copy_(sent), group=axis.group)
    return 2 * sent.nbytes * (axis.size - 1) // axis.size


def ring(axis: Axis, sent: Tensor, got: Tensor) -> int:
    """Exchange as keys and values travel: to the next rank, from the previous one."""
    to, by = axis.ranks[(axis.index + 1) % axis.size], axis.ranks[axis.index - 1]
    ops = [dist.P2POp(dist.isend, sent, to, axis.group), dist.P2POp(dist.irecv, got, by, axis.group)]
    for work in dist.batch_isend_irecv(ops):
        work.wait()
    return sent.nbytes


def all_gather(axis: Axis, sent: Tensor, got: Tensor) -> int:
    """Exchange as guidance rows are put together."""
    share = sent.numel() // axis.size
    dist.all_gather_into_tensor(got[: share * axis.size], sent[:share].contiguous(), group=axis.group)
    return share * sent.element_size() * (axis.size - 1)


def _see(me: Rank, device: torch.device) -> RankSeen:
    wall_over_monotonic = time.time() - time.monotonic()
    ahead: float | None = None
    if me.world > me.local_world:
        offset, _ = clock_offset(me)
        first = [wall_over_monotonic]
        dist.broadcast_object_list(first, 0)
        ahead = None if offset is None else wall_over_monotonic - offset - first[0]
    return RankSeen(me.rank, socket.gethostname(), device_uuid(device), ahead)


def _speed(
    spec: ProbeSpec, axis: Axis, exchange: Callable[[Axis, Tensor, Tensor], int], device: torch.device
) -> AxisSpeed:
    per_rank = spec.nbytes // 2 // axis.size * axis.size  # bf16, in equal parts
    sent = torch.ones(per_rank, dtype=torch.bfloat16, device=device)
    got = torch.empty_like(sent)
    times, nbytes = [], 0
    for _ in range(WARM_UP + spec.repeats):
        dist.barrier(axis.group)
        _wait(device)
        begun = time.monotonic()
        nbytes = exchange(axis, sent, got)
        _wait(device)
        times.append(time.monotonic() - begun)
    slowest = max(gathered(statistics.median(times[WARM_UP:])))
    return AxisSpeed(axis.name, exchange.__name__, axis.size, nbytes, slowest)


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


if __name__ == "__main__":
    secure_output()
    sys.exit(main(sys.argv[1:]))
