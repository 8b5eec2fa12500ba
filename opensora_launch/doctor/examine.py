"""Is this host ready for a run? Facts are gathered here and judged by the checks, one finding a line.

`quick` is what `generate` asks before it starts ranks: milliseconds, no torch. `full` takes seconds.
"""

import os
import socket
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from opensora_launch.doctor import build_checks, gpu_checks, host_checks
from opensora_launch.doctor.env_audit import Surroundings, audit, audit_taken
from opensora_launch.doctor.host_checks import Needs
from opensora_launch.doctor.host_facts import host_facts
from opensora_launch.doctor.interfaces import infiniband_up, interfaces
from opensora_launch.doctor.probe import probe_findings, run_probe
from opensora_launch.doctor.probe_spec import ProbeResult, ProbeSpec
from opensora_launch.doctor.results import Finding, Level, ok
from opensora_launch.doctor.torch_facts import ask_torch, installed_torch
from opensora_launch.launch.env_profile import Profiled
from opensora_launch.machine.gpu_facts import find_gpus
from opensora_launch.machine.host_gpus import GpuFacts, HostGpus
from opensora_launch.machine.processes import descendants
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.plan import Machine

PROBE_BYTES = {"cuda": 64 << 20, "cpu": 8 << 20}
PROBE_REPEATS = 10
PROBE_TIMEOUT_S = 60.0
LANE_GB_S = {3: 0.985, 4: 1.969, 5: 3.938, 6: 7.563}  # PCIe, one lane, one direction


@dataclass(frozen=True)
class Patient:
    """What is examined: the ranks' environment as it will be, where they run, and what they need."""

    env: Mapping[str, str]
    machine: Machine
    needs: Needs
    disks: tuple[Path, ...]


def quick(patient: Patient) -> list[Finding]:
    """Environment, memory and disk of this host. Findings that are ok are left out."""
    gpus = find_gpus() if patient.needs.on_gpu else HostGpus((), (), None, None, None)
    host = host_facts(patient.disks)
    found = [*_environment(patient), *host_checks.memory_and_disk(host, patient.needs)]
    found += gpu_checks.gpu_memory(visible(gpus.gpus, patient.env), patient.needs, _ours())
    return [finding for finding in found if finding.level is not Level.ok]


def full(patient: Patient, layout: Layout, *, ranks: bool, nvlink_gb_s: float | None) -> list[Finding]:
    """Everything about this host. `ranks`: start them for a moment; `nvlink_gb_s`: one way, of the catalogue."""
    gpus, host = find_gpus(), host_facts(patient.disks)
    seen = visible(gpus.gpus, patient.env)
    torch, why_not = ask_torch(patient.env)
    found = [_seen(gpus, seen, patient)]
    found += build_checks.builds(gpus, torch, why_not, wants_gpu=patient.needs.on_gpu)
    found += [*gpu_checks.gpu_memory(seen, patient.needs, _ours()), *gpu_checks.gpu_state(seen)] if seen else []
    found += gpu_checks.links(gpus, {gpu.index for gpu in seen})
    found += host_checks.memory_and_disk(host, patient.needs) + host_checks.limits(host, patient.needs)
    found += _environment(patient) or [ok("env", "no setting that is known to harm reaches the ranks")]
    if ranks and torch is not None and not _cannot_start(found):
        found += _probe(patient, layout, _link_gb_s(gpus, seen, nvlink_gb_s))
    return found


def here(findings: Sequence[Finding]) -> list[Finding]:
    """The findings, with this host's name."""
    name = socket.gethostname()
    return [replace(finding, host=name) for finding in findings]


def visible(gpus: Sequence[GpuFacts], env: Mapping[str, str]) -> list[GpuFacts]:
    """Those that CUDA_VISIBLE_DEVICES lets the ranks see, in its order; the first that names none ends the list."""
    entries = env.get("CUDA_VISIBLE_DEVICES")
    if entries is None:
        return list(gpus)
    found: list[GpuFacts] = []
    for entry in (part.strip() for part in entries.split(",")):
        if entry.isascii() and entry.isdigit():
            named = [gpu for gpu in gpus if gpu.index == int(entry)]
        else:
            named = [gpu for gpu in gpus if entry and gpu.uuid.startswith(entry)]
        if len(named) != 1:
            break
        found += named
    return found


def kept_away(patient: Patient, made: Profiled) -> list[Finding]:
    """What the profile takes from the environment that doctor itself was given, with why."""
    return list(audit_taken(made.taken, patient.env, made.profile, _around(patient)))


def _environment(patient: Patient) -> list[Finding]:
    return audit(patient.env, _around(patient))


def _around(patient: Patient) -> Surroundings:
    machine = patient.machine
    return Surroundings(
        gpus=machine.gpus_per_node if patient.needs.on_gpu else 0,
        nodes=machine.nodes,
        ranks_per_node=machine.gpus_per_node,
        cpus=machine.cpus_per_node,
        infiniband=infiniband_up(),
        interfaces=interfaces(),
        torch=installed_torch(),
    )


def _seen(gpus: HostGpus, seen: Sequence[GpuFacts], patient: Patient) -> Finding:
    wanted = patient.machine.gpus_per_node
    if not patient.needs.on_gpu:
        there = f"{len(gpus.gpus)} GPUs are there and not asked for" if gpus.gpus else f"no GPU ({gpus.problem})"
        return ok("gpus", f"{there}; {wanted} ranks on {patient.machine.cpus_per_node} CPUs")
    what = f"{len(seen)} of {len(gpus.gpus)} visible, {wanted} asked for"
    if len(seen) >= wanted:
        return ok("gpus", what)
    why = f": {gpus.problem}" if gpus.problem else ""
    fix = "CUDA_VISIBLE_DEVICES, the driver (nvidia-smi), docker run --gpus all, or topology=cpu2"
    return Finding(Level.fail, "gpus", what + why, fix, "no cost to a reboot")


def _ours() -> set[int]:
    return {os.getpid(), *descendants(os.getpid())}


def _cannot_start(found: Sequence[Finding]) -> bool:
    return any(finding.level is Level.fail and finding.check in ("gpus", "torch", "driver") for finding in found)


def _link_gb_s(gpus: HostGpus, seen: Sequence[GpuFacts], nvlink_gb_s: float | None) -> float | None:
    """One way, of the slowest pair: NVLink as the catalogue has it, else PCIe as the slowest card is plugged in."""
    indices = {gpu.index for gpu in seen}
    pairs = [pair for pair in gpus.pairs if {pair.first, pair.second} <= indices]
    if not pairs:
        return None
    if all(pair.nvlink for pair in pairs):
        return nvlink_gb_s
    lanes = [LANE_GB_S.get(gpu.pcie[1], 0.0) * gpu.pcie[2] for gpu in seen if gpu.pcie]
    return min(lanes, default=None) or None


def between_nodes(patient: Patient, layout: Layout, node_link_gb_s: float, shared: Path) -> list[Finding]:
    """Ranks on all nodes of this Slurm job: clocks, and each axis; those that leave a node against its network."""
    shared.mkdir(parents=True, exist_ok=True)
    per_node, wide, stride = patient.machine.gpus_per_node, {}, 1
    for axis in ("tp", "ulysses", "ring", "cfg"):
        stride *= getattr(layout, axis)
        if stride > per_node and patient.needs.on_gpu:
            wide[axis] = node_link_gb_s
    result, why_not = _run(patient, layout, shared)
    return probe_findings(result, why_not, wide)


def _probe(patient: Patient, layout: Layout, link_gb_s: float | None) -> list[Finding]:
    result, why_not = _run(patient, layout, None)
    axes = [speed.axis for speed in result.speeds] if result else []
    return probe_findings(result, why_not, dict.fromkeys(axes, link_gb_s) if link_gb_s else {})


def _run(patient: Patient, layout: Layout, shared: Path | None) -> tuple[ProbeResult | None, str]:
    machine = patient.machine
    spec = ProbeSpec(
        device=machine.device,
        layout=layout,
        threads_per_rank=max(1, machine.cpus_per_node // machine.gpus_per_node),
        nbytes=PROBE_BYTES[machine.device],
        repeats=PROBE_REPEATS,
        timeout_s=PROBE_TIMEOUT_S,
    )
    env = {**patient.env, "CUDA_DEVICE_ORDER": "PCI_BUS_ID", "OMP_NUM_THREADS": str(spec.threads_per_rank)}
    return run_probe(machine, spec, env, shared)
