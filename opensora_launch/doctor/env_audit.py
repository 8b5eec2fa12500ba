"""Find environment variables that are known to do harm. Pure: takes a mapping and facts, returns results.

Many come from public Docker files and guides for Open-Sora, where they were set "to be safe".
"""

import re
from collections.abc import Iterable, Iterator, Mapping
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
    found = [*_links(env, here), *_kernels(env, here), *_threads(env, here), *_waits_and_logs(env, here)]
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


def _on(env: Mapping[str, str], name: str) -> bool:
    return env.get(name, "").strip().lower() in ON


def _harm(name: str, env: Mapping[str, str], why: str, fix: str = "") -> CheckResult:
    return bad_variable(f"{name}={env[name]}: {why}", fix or f"unset {name}")


def _links(env: Mapping[str, str], here: Surroundings) -> Iterator[CheckResult]:
    if here.gpus > 1 and _on(env, "NCCL_P2P_DISABLE"):
        why = "GPUs exchange data through host memory and leave NVLink idle, 2 to 20 times slower"
        hint = "it only helps if peer access hangs (the links line says whether the driver offers it)"
        yield _harm("NCCL_P2P_DISABLE", env, f"{why}; {hint}")
    if here.gpus > 1 and _on(env, "NCCL_SHM_DISABLE"):
        yield _harm("NCCL_SHM_DISABLE", env, "GPUs of one machine without peer access use the network stack")
    if here.infiniband and _on(env, "NCCL_IB_DISABLE"):
        yield _harm("NCCL_IB_DISABLE", env, "InfiniBand is up, but NCCL would use TCP, which is 5 to 20 times slower")
    if "NCCL_TREE_THRESHOLD" in env:
        yield _harm("NCCL_TREE_THRESHOLD", env, "NCCL ignores it since version 2.5")


def _kernels(env: Mapping[str, str], here: Surroundings) -> Iterator[CheckResult]:
    if here.gpus and _on(env, "CUDA_LAUNCH_BLOCKING"):
        why = "the CPU waits for every kernel, so launches and communication do not overlap; only for debugging"
        yield _harm("CUDA_LAUNCH_BLOCKING", env, why)
    if here.gpus and "PYTORCH_NO_CUDA_MEMORY_CACHING" in env:
        why = "every tensor costs a cudaMalloc and a cudaFree, which stop the GPU; any value turns it on"
        yield _harm("PYTORCH_NO_CUDA_MEMORY_CACHING", env, why)
    if "CUDA_MEMORY_FRACTION" in env:
        limit = "PYTORCH_CUDA_ALLOC_CONF=per_process_memory_fraction:0.9 (torch 2.7 or newer)"
        fix = f"unset it; for a limit, use {limit}"
        yield _harm("CUDA_MEMORY_FRACTION", env, "neither CUDA nor torch reads it", fix)


def _threads(env: Mapping[str, str], here: Surroundings) -> Iterator[CheckResult]:
    each = here.cpus // max(here.ranks_per_node, 1)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        if env.get(name) == "1" and each > 1 and not here.gpus:
            why = (
                f"CPU ranks use one core each, though there are {each} per rank; the launcher gives its ranks their "
                "share, but other programs (ranks started by hand, tokenizers, ffmpeg filters) stay on one core"
            )
            yield _harm(name, env, why, f"unset {name}, or set launcher.threads_per_rank={each}")


def _waits_and_logs(env: Mapping[str, str], here: Surroundings) -> Iterator[CheckResult]:
    for name in ("TORCH_NCCL_BLOCKING_WAIT", "NCCL_BLOCKING_WAIT"):
        if here.gpus and _on(env, name):
            why = "the CPU blocks in every collective, so it launches nothing ahead; hangs are detected without it"
            yield _harm(name, env, why)
    if env.get("NCCL_DEBUG", "").upper() in ("INFO", "TRACE"):
        yield _harm("NCCL_DEBUG", env, "thousands of lines per rank hide what matters", "set NCCL_DEBUG=WARN")
    if env.get("TORCH_DISTRIBUTED_DEBUG", "").upper() == "DETAIL":
        yield _harm("TORCH_DISTRIBUTED_DEBUG", env, "an extra collective compares every collective across ranks first")
