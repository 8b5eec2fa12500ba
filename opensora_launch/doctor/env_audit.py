"""Find environment variables that are known to do harm. Pure: takes a mapping and facts, returns results.

Many come from public Docker files and guides for Open-Sora, where they were set "to be safe".
"""

import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

from opensora_launch.doctor.alloc_conf import check_allocator
from opensora_launch.doctor.check_result import CheckResult, Level, bad_variable
from opensora_launch.doctor.interfaces import Interface, check_socket_names

ON = ("1", "true", "on", "yes")


@dataclass(frozen=True)
class Surroundings:
    """Facts about the machine and the run that the audit needs."""

    gpus: int  # of this host that the run uses; 0 on the CPU
    nodes: int
    ranks_per_node: int
    cpus: int
    infiniband: bool  # a port is up
    interfaces: tuple[Interface, ...]
    torch: tuple[int, int] | None  # installed version, as (2, 13)


def audit(env: Mapping[str, str], here: Surroundings) -> list[CheckResult]:
    """Report every harmful setting."""
    found = [
        bad_variable(f"{name}={env[name]}: {why}", fix or f"unset {name}")
        for name, values, applies, why, fix in _harmful(here)
        if applies and name in env and (values is None or env[name].strip().lower() in values)
    ]
    found += check_allocator(env, here.torch) if here.gpus else []
    return found + check_socket_names(env, here.interfaces, nodes=here.nodes, gpus=here.gpus)


def audit_taken(
    taken: Mapping[str, str], env: Mapping[str, str], profile: str, here: Surroundings
) -> Iterator[CheckResult]:
    """Report each variable that `profile` removes from the ranks' `env`, with its old value and the reason.

    If it does no harm on this machine, the reason is the harm on a machine with GPUs and InfiniBand.
    """
    fix, cost = "remove it from your shell or image; env=asis passes it to the ranks", "no cost"
    elsewhere = replace(here, gpus=max(here.gpus, 2), infiniband=True)
    for name, value in taken.items():
        whole = {**env, name: value}
        found = _about(name, audit(whole, here)) or _about(name, audit(whole, elsewhere))
        for result in found:
            what = f"{result.what}; env={profile} removes it for the ranks"
            yield replace(result, level=Level.warn, what=what, fix=fix, cost=cost)
        if not found:
            yield CheckResult(Level.warn, "env", f"env={profile} removes {name}={value} for the ranks", fix, cost)


def _about(name: str, found: Iterable[CheckResult]) -> list[CheckResult]:
    return [result for result in found if re.match(rf"{name}\b", result.what)]


def _harmful(here: Surroundings) -> Iterator[tuple[str, Sequence[str] | None, bool, str, str]]:
    """Variable, the values in lower case that do harm (None: all), whether they do so here, why, and a special fix."""
    gpus, several, each = here.gpus > 0, here.gpus > 1, here.cpus // max(here.ranks_per_node, 1)
    why = "GPUs exchange data through host memory and leave NVLink idle, 2 to 20 times slower"
    hint = "it only helps if peer access hangs (the links line says whether the driver offers it)"
    yield "NCCL_P2P_DISABLE", ON, several, f"{why}; {hint}", ""
    yield "NCCL_SHM_DISABLE", ON, several, "GPUs of one machine without peer access use the network stack", ""
    why = "InfiniBand is up, but NCCL would use TCP, which is 5 to 20 times slower"
    yield "NCCL_IB_DISABLE", ON, here.infiniband, why, ""
    yield "NCCL_TREE_THRESHOLD", None, True, "NCCL ignores it since version 2.5", ""
    why = "the CPU waits for every kernel, so launches and communication do not overlap; only for debugging"
    yield "CUDA_LAUNCH_BLOCKING", ON, gpus, why, ""
    why = "every tensor costs a cudaMalloc and a cudaFree, which stop the GPU; any value turns it on"
    yield "PYTORCH_NO_CUDA_MEMORY_CACHING", None, gpus, why, ""
    limit = "PYTORCH_CUDA_ALLOC_CONF=per_process_memory_fraction:0.9 (torch 2.7 or newer)"
    fix = f"unset it; for a limit, use {limit}"
    yield "CUDA_MEMORY_FRACTION", None, True, "neither CUDA nor torch reads it", fix
    why = (
        f"CPU ranks use one core each, though there are {each} per rank; the launcher gives its ranks their share, but "
        "other programs (ranks started by hand, tokenizers, ffmpeg filters) stay on one core"
    )
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        yield name, ("1",), each > 1 and not gpus, why, f"unset {name}, or set launcher.threads_per_rank={each}"
    why = "the CPU blocks in every collective, so it launches nothing ahead; hangs are detected without it"
    for name in ("TORCH_NCCL_BLOCKING_WAIT", "NCCL_BLOCKING_WAIT"):
        yield name, ON, gpus, why, ""
    why = "thousands of lines per rank hide what matters"
    yield "NCCL_DEBUG", ("info", "trace"), True, why, "set NCCL_DEBUG=WARN"
    why = "an extra collective compares every collective across ranks first"
    yield "TORCH_DISTRIBUTED_DEBUG", ("detail",), True, why, ""
