"""Check whether this host is ready for a run: gather the facts and give them to the checks.

`quick_checks` takes milliseconds and no torch: `generate` does it before it starts ranks. `full_checks` takes seconds.
"""

import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from opensora_launch.doctor import build_checks, gpu_checks, host_checks
from opensora_launch.doctor.check_result import CheckResult, Level, failure, ok
from opensora_launch.doctor.env_audit import Surroundings, audit, audit_taken
from opensora_launch.doctor.host_checks import Needs
from opensora_launch.doctor.interfaces import infiniband_up, interfaces
from opensora_launch.doctor.probe import ProbeResult, ProbeSpec, check_probe, run_probe
from opensora_launch.doctor.torch_facts import ask_kernels, ask_torch, installed_torch, torch_problems
from opensora_launch.launch.env_profile import Profiled
from opensora_launch.machine.choose_gpus import link_of
from opensora_launch.machine.find_gpus import find_gpus
from opensora_launch.machine.host import host_facts
from opensora_launch.machine.host_gpus import DIVIDED, GpuFacts, HostGpus, no_gpus_problem
from opensora_launch.machine.processes import descendants
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.plan import Machine
from opensora_launch.schema.cards import PCIE_GB_S

PROBE_BYTES = {"cuda": 64 << 20, "cpu": 8 << 20}
PROBE_REPEATS = 10
PROBE_TIMEOUT_S = 60.0


@dataclass(frozen=True)
class CheckTarget:
    """What is checked: the environment of the ranks, where they run, and what they need."""

    env: Mapping[str, str]
    machine: Machine
    needs: Needs
    disks: tuple[Path, ...]


def quick_checks(target: CheckTarget) -> list[CheckResult]:
    """Check environment, memory and disk of this host. Returns no results that are ok."""
    gpus = find_gpus() if target.needs.on_gpu else HostGpus()
    host, setting = host_facts(target.disks), target.env.get("CUDA_VISIBLE_DEVICES")
    seen = gpus.visible(setting)
    found = [*_environment(target), *host_checks.check_memory_and_disk(host, target.needs)]
    if target.needs.on_gpu:
        found += _seen(gpus, setting, target)
        found += [failure("torch", line) for line in torch_problems(len(seen))]
    found += gpu_checks.check_gpu_memory(seen, target.needs, _ours(), host.available_bytes)
    return [result for result in found if result.level is not Level.ok]


def full_checks(target: CheckTarget, layout: Layout, *, ranks: bool, nvlink_gb_s: float | None) -> list[CheckResult]:
    """Check everything on this host. `ranks`: start them for a moment; `nvlink_gb_s`: one way, from the catalogue."""
    gpus, host, setting = find_gpus(), host_facts(target.disks), target.env.get("CUDA_VISIBLE_DEVICES")
    seen = gpus.visible(setting)
    torch, why_not = ask_torch(target.env)
    found = [*_seen(gpus, setting, target)]
    found += build_checks.check_builds(gpus, torch, why_not, wants_gpu=target.needs.on_gpu)
    if torch is not None and torch.available:
        found += build_checks.check_trials(*ask_kernels(target.env))
    found += gpu_checks.check_gpu_memory(seen, target.needs, _ours(), host.available_bytes)
    found += gpu_checks.check_gpu_state(seen)
    found += gpu_checks.check_links(gpus, {gpu.index for gpu in seen})
    found += host_checks.check_memory_and_disk(host, target.needs) + host_checks.check_limits(host, target.needs)
    found += _environment(target) or [ok("env", "no harmful setting reaches the ranks")]
    stops = any(result.level is Level.fail and result.check in ("gpus", "torch", "driver") for result in found)
    if ranks and torch is not None and not stops:
        found += _probe(target, layout, _link_gb_s(gpus, seen, nvlink_gb_s))
    return found


def with_host(results: Sequence[CheckResult]) -> list[CheckResult]:
    """Add the name of this host to the results."""
    name = socket.gethostname()
    return [replace(result, host=name) for result in results]


def profile_results(target: CheckTarget, made: Profiled) -> list[CheckResult]:
    """Report the variables that the profile removes from the environment, with the reason."""
    return list(audit_taken(made.taken, target.env, made.profile, _around(target)))


def _environment(target: CheckTarget) -> list[CheckResult]:
    return audit(target.env, _around(target))


def _around(target: CheckTarget) -> Surroundings:
    machine = target.machine
    return Surroundings(
        gpus=machine.gpus_per_node if target.needs.on_gpu else 0,
        nodes=machine.nodes,
        ranks_per_node=machine.gpus_per_node,
        cpus=machine.cpus_per_node,
        infiniband=infiniband_up(),
        interfaces=interfaces(),
        torch=installed_torch(),
    )


def _seen(gpus: HostGpus, setting: str | None, target: CheckTarget) -> Iterator[CheckResult]:
    wanted = target.machine.gpus_per_node
    if not target.needs.on_gpu:
        count = len(gpus.gpus)
        there = f"{count} {'GPU' if count == 1 else 'GPUs'}, not requested" if count else f"no GPU ({gpus.problem})"
        yield ok("gpus", f"{there}; {wanted} ranks on {target.machine.cpus_per_node} CPUs")
        return
    if fault := no_gpus_problem(gpus, setting):
        yield failure("gpus", fault)
        return
    lost = gpus.visible_lost(setting)
    yield from (CheckResult(Level.warn, "gpus", f"GPU {gpu.index} is left out: {gpu.why}") for gpu in lost)
    whole = [gpu for gpu in gpus.visible(setting) if not gpu.mig]
    divided = [gpu for gpu in gpus.visible(setting) if gpu.mig]
    count = len(whole)
    what = f"{count} of {len(gpus.gpus) + len(gpus.lost)} visible, {wanted} requested"
    if count >= wanted:
        yield ok("gpus", what)
        return
    why = f": {gpus.problem}" if gpus.problem else "".join(f"; GPU {gpu.index}: {DIVIDED}" for gpu in divided)
    fix = "check CUDA_VISIBLE_DEVICES and the driver (nvidia-smi), or use docker run --gpus all, or topology=cpu2"
    yield failure("gpus", what + why, fix, "nothing, or a reboot")


def _ours() -> set[int]:
    return {os.getpid(), *descendants(os.getpid())}


def _link_gb_s(gpus: HostGpus, seen: Sequence[GpuFacts], nvlink_gb_s: float | None) -> float | None:
    """Bandwidth of the slowest pair, one way: NVLink by the catalogue, else PCIe by the slot of the slowest card."""
    link = link_of(seen, gpus.pairs)
    lanes = [PCIE_GB_S.get(gpu.pcie[1], 0.0) * gpu.pcie[2] / 16 for gpu in seen if gpu.pcie]
    return {"nvlink": nvlink_gb_s, "pcie": min(lanes, default=None) or None}.get(link)


def check_between_nodes(target: CheckTarget, layout: Layout, node_link_gb_s: float, shared: Path) -> list[CheckResult]:
    """Start ranks on all nodes of this Slurm job and check their clocks and each axis.

    Axes that span nodes are compared with the bandwidth of the network.
    """
    shared.mkdir(parents=True, exist_ok=True)
    per_node, wide, stride = target.machine.gpus_per_node, {}, 1
    for axis in ("tp", "ulysses", "ring", "cfg"):
        stride *= getattr(layout, axis)
        if stride > per_node and target.needs.on_gpu:
            wide[axis] = node_link_gb_s
    result, why_not = _run(target, layout, shared)
    return check_probe(result, why_not, wide)


def _probe(target: CheckTarget, layout: Layout, link_gb_s: float | None) -> list[CheckResult]:
    result, why_not = _run(target, layout, None)
    axes = [speed.axis for speed in result.speeds] if result else []
    return check_probe(result, why_not, dict.fromkeys(axes, link_gb_s) if link_gb_s else {})


def _run(target: CheckTarget, layout: Layout, shared: Path | None) -> tuple[ProbeResult | None, str]:
    machine = target.machine
    threads = max(1, machine.cpus_per_node // machine.gpus_per_node)
    spec = ProbeSpec(machine.device, layout, threads, PROBE_BYTES[machine.device], PROBE_REPEATS, PROBE_TIMEOUT_S)
    env = {**target.env, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "OMP_NUM_THREADS": str(threads)}
    return run_probe(machine, spec, env, shared)
