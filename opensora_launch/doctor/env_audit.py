"""Environment variables that are known to harm, each with why. Pure: a mapping and facts in, findings out.

Many come from public Docker files and guides for Open-Sora, where they were set "to be safe".
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from opensora_launch.doctor.alloc_conf import alloc_findings
from opensora_launch.doctor.interfaces import Interface, socket_findings
from opensora_launch.doctor.results import Finding, Level

ON = ("1", "true", "on", "yes")
FREE = "no cost; takes effect at the next start"


@dataclass(frozen=True)
class Surroundings:
    """What the audit needs to know of the machine and the run."""

    gpus: int  # of this host that the run uses; 0 on the CPU
    nodes: int
    ranks_per_node: int
    cpus: int
    infiniband: bool  # a port that is up
    interfaces: tuple[Interface, ...]
    torch: tuple[int, int] | None  # installed version, as (2, 13)


def audit(env: Mapping[str, str], here: Surroundings) -> list[Finding]:
    """Every harmful setting; empty where there is none."""
    found = [*_links(env, here), *_kernels(env, here), *_threads(env, here), *_waits(env, here), *_logs(env)]
    found += alloc_findings(env, here.torch) if here.gpus else []
    return found + socket_findings(env, here.interfaces, nodes=here.nodes, gpus=here.gpus)


def audit_taken(
    taken: Mapping[str, str], env: Mapping[str, str], profile: str, here: Surroundings
) -> Iterator[Finding]:
    """What `profile` keeps from the ranks' `env`, each with why it harms: here, else where there are GPUs."""
    fix, cost = "leave it out of your shell or image; env=asis gives it to the ranks", "no cost"
    elsewhere = replace(here, gpus=max(here.gpus, 2), infiniband=True)
    for name, value in taken.items():
        whole = {**env, name: value}
        found = _about(name, audit(whole, here)) or _about(name, audit(whole, elsewhere))
        for finding in found:
            what = f"{finding.what}; env={profile} keeps it from the ranks"
            yield replace(finding, level=Level.warn, what=what, fix=fix, cost=cost)
        if not found:
            yield Finding(Level.warn, "env", f"env={profile} keeps {name}={value} from the ranks", fix, cost)


def _about(name: str, found: Iterable[Finding]) -> list[Finding]:
    return [finding for finding in found if re.match(rf"{name}\b", finding.what)]


def _on(env: Mapping[str, str], name: str) -> bool:
    return env.get(name, "").strip().lower() in ON


def _harm(name: str, env: Mapping[str, str], why: str, fix: str = "") -> Finding:
    return Finding(Level.warn, "env", f"{name}={env[name]}: {why}", fix or f"unset {name}", FREE)


def _links(env: Mapping[str, str], here: Surroundings) -> Iterator[Finding]:
    if here.gpus > 1 and _on(env, "NCCL_P2P_DISABLE"):
        yield _harm(
            "NCCL_P2P_DISABLE",
            env,
            "GPUs exchange through host memory and leave NVLink idle, 2 to 20 times slower; it only helps where peer "
            "access hangs (the links line says whether the driver offers it)",
        )
    if here.gpus > 1 and _on(env, "NCCL_SHM_DISABLE"):
        yield _harm("NCCL_SHM_DISABLE", env, "GPUs of one machine without peer access talk through the network stack")
    if here.infiniband and _on(env, "NCCL_IB_DISABLE"):
        yield _harm("NCCL_IB_DISABLE", env, "InfiniBand is there and up, and NCCL would use TCP, 5 to 20 times slower")
    if "NCCL_TREE_THRESHOLD" in env:
        yield _harm("NCCL_TREE_THRESHOLD", env, "NCCL has not read it since 2.5")


def _kernels(env: Mapping[str, str], here: Surroundings) -> Iterator[Finding]:
    if here.gpus and _on(env, "CUDA_LAUNCH_BLOCKING"):
        yield _harm(
            "CUDA_LAUNCH_BLOCKING",
            env,
            "the CPU waits for every kernel, so nothing overlaps: not launches, not communication; for debugging only",
        )
    if here.gpus and "PYTORCH_NO_CUDA_MEMORY_CACHING" in env:
        yield _harm(
            "PYTORCH_NO_CUDA_MEMORY_CACHING",
            env,
            "every tensor is a cudaMalloc and a cudaFree that stop the GPU; any value but an absent one turns it on",
        )
    if "CUDA_MEMORY_FRACTION" in env:
        yield _harm(
            "CUDA_MEMORY_FRACTION",
            env,
            "nothing reads it: neither CUDA nor torch",
            "unset it; a limit is PYTORCH_CUDA_ALLOC_CONF=per_process_memory_fraction:0.9 (torch 2.7 or newer)",
        )


def _threads(env: Mapping[str, str], here: Surroundings) -> Iterator[Finding]:
    each = here.cpus // max(here.ranks_per_node, 1)
    for name in ("OMP_NUM_THREADS", "MKL_NUM_THREADS"):
        if env.get(name) == "1" and each > 1 and not here.gpus:
            yield _harm(
                name,
                env,
                f"CPU ranks compute on one core each where there are {each} for each; our launcher gives its ranks "
                "their share, what else reads it (by hand, tokenizers, ffmpeg filters) stays on one",
                f"unset {name}, or launcher.threads_per_rank={each}",
            )


def _waits(env: Mapping[str, str], here: Surroundings) -> Iterator[Finding]:
    for name in ("TORCH_NCCL_BLOCKING_WAIT", "NCCL_BLOCKING_WAIT"):
        if here.gpus and _on(env, name):
            yield _harm(
                name,
                env,
                "the CPU stands still in every collective, so nothing is launched behind it; hangs are found anyway",
            )


def _logs(env: Mapping[str, str]) -> Iterator[Finding]:
    if env.get("NCCL_DEBUG", "").upper() in ("INFO", "TRACE"):
        yield _harm("NCCL_DEBUG", env, "thousands of lines a rank bury what matters", "NCCL_DEBUG=WARN")
    if env.get("TORCH_DISTRIBUTED_DEBUG", "").upper() == "DETAIL":
        yield _harm(
            "TORCH_DISTRIBUTED_DEBUG", env, "every collective is compared across ranks first, with an extra one"
        )
