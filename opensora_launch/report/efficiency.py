"""How much faster n ranks are than a named baseline, and which runs may be compared at all.

Strong scaling: efficiency = t_base * gpus_base / (t_n * n), for equal work. The baseline is another run, measured on
these hosts or a report kept from others, or what one rank would take, predicted from this run's own parts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from opensora_launch.errors import UserError
from opensora_launch.plan.plan import Plan
from opensora_launch.report.accounting import RankAccount

MEASURED, STORED, PREDICTED = "measured", "stored", "predicted"
HOW_PREDICTED = (
    "one rank that does the compute, text, VAE and save of all ranks one after the other at their speed, and setup, "
    "load and the rest once; what every rank repeats is counted once a rank, so the efficiency errs high"
)

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Times:
    """Seconds on so many ranks: of the whole job, and of its denoise phases alone (the busiest rank's)."""

    gpus: int
    job_s: float
    denoise_s: float


@dataclass(frozen=True)
class Baseline:
    kind: str  # "measured" here, "stored", or "predicted"
    name: str
    how: str
    times: Times


@dataclass(frozen=True)
class Scaling:
    """Of one scope, the job or its denoising."""

    t_base_s: float
    gpus_base: int
    t_s: float
    gpus: int
    speedup: float
    efficiency: float


@dataclass(frozen=True)
class Efficiency:
    baseline: Baseline
    job: Scaling
    denoise: Scaling
    fault: str | None  # why the numbers cannot be right


def efficiency(times: Times, baseline: Baseline) -> Efficiency:
    """Both scopes against one baseline. Above 1 is a fault of the measurement until shown otherwise."""
    job = _scaling(baseline.times.job_s, times.job_s, baseline.times.gpus, times.gpus)
    denoise = _scaling(baseline.times.denoise_s, times.denoise_s, baseline.times.gpus, times.gpus)
    high = [f"{name} {s.efficiency:.3f}" for name, s in (("job", job), ("denoise", denoise)) if s.efficiency > 1]
    fault = (
        f"efficiency above 1 ({', '.join(high)}) is a fault of the measurement until shown otherwise: "
        "was the baseline run on a machine that did something else too?"
    )
    return Efficiency(baseline, job, denoise, fault if high else None)


def _scaling(t_base_s: float, t_s: float, gpus_base: int, gpus: int) -> Scaling:
    return Scaling(t_base_s, gpus_base, t_s, gpus, t_base_s / t_s, t_base_s * gpus_base / (t_s * gpus))


def measured(report: Mapping[str, Any], hosts: Sequence[str]) -> Baseline:
    """Another run's report as a baseline; UserError if it has no whole measurement.

    It is measured here if it ran on some of these `hosts`; else it is a stored one, of machines that may differ in
    what no report shows.
    """
    if report["times"] is None:
        raise UserError(f"{report['run']} cannot be a baseline", [str(report["efficiency_reason"])])
    theirs = report["machine"]["hosts"]
    here = bool(theirs) and set(theirs) <= set(hosts)
    how = f"run {report['run']} on {report['times']['gpus']} x {report['work']['device_name']}"
    how += f", engine {engine_of(report)}"
    if not here:
        how += f", a stored report: measured on {', '.join(theirs) or 'hosts that it does not name'}, not here"
    return Baseline(MEASURED if here else STORED, str(report["run"]), how, Times(**report["times"]))


def engine_of(report: Mapping[str, Any]) -> str:
    """What ran it; reports that do not say are from before there were two."""
    return str(report.get("engine", "native"))


def other_engine(a: Mapping[str, Any], b: Mapping[str, Any], first: str, second: str) -> list[str]:
    """A line where two runs of equal work were run by different engines."""
    ours, theirs = engine_of(a), engine_of(b)
    return [] if ours == theirs else [f"engines are compared: {ours} {first}, {theirs} {second}"]


def predicted(run: str, ranks: Sequence[RankAccount]) -> Baseline:
    """What one rank would take, from a run on several."""
    shared = sum(r.parts[part] for r in ranks for part in ("compute", "text", "vae", "save"))
    serial = sum(max(r.parts[part] for r in ranks) for part in ("setup", "load", "other"))
    times = Times(1, shared + serial, sum(r.parts["compute"] for r in ranks))
    return Baseline(PREDICTED, f"one rank, predicted from {run}", HOW_PREDICTED, times)


def work_of(plan: Plan, *, device_names: Sequence[str], attention: str | None, row_forwards: int) -> dict[str, Scalar]:
    """All that must be equal for two runs to be compared, flat. Texts and seeds do not change the work."""
    shape, sampling = plan.geometry, plan.sampling
    model = asdict(plan.model)
    work: dict[str, Scalar] = {
        "device": plan.machine.device,
        "device_name": " + ".join(sorted(set(device_names))),
        "threads_per_rank": plan.threads_per_rank if plan.machine.device == "cpu" else None,
        "precision": plan.precision,
        "attention": attention or plan.attention,
        "height_px": shape.height_px,
        "width_px": shape.width_px,
        "num_frames": shape.num_frames,
        "text_tokens": shape.text_tokens,
        "videos": len(plan.videos),
        "num_steps": sampling.num_steps,
        "row_forwards": row_forwards,
        "batch_size": sampling.batch_size,
        "state_dtype": sampling.state_dtype,
        "noise_device": sampling.noise_device,
        "profile": plan.profile,
    }
    for part in ("name", "init", "mmdit", "vae", "text"):
        work |= _flat(f"model.{part}", model[part])
    return work | _flat("placement", asdict(plan.placement))


def _flat(name: str, value: Any) -> dict[str, Scalar]:
    if isinstance(value, dict):
        return {key: leaf for inner, found in value.items() for key, leaf in _flat(f"{name}.{inner}", found).items()}
    return {name: str(value) if isinstance(value, list | str) else value}


def differences(
    work: Mapping[str, Scalar], other: Mapping[str, Scalar], mine: str = "here", theirs: str = "in the baseline"
) -> list[str]:
    """One line for each thing that the two runs did differently."""
    keys = [*work, *(key for key in other if key not in work)]
    return [
        f"{key}: {work.get(key, 'unknown')} {mine}, {other.get(key, 'unknown')} {theirs}"
        for key in keys
        if work.get(key, "unknown") != other.get(key, "unknown")
    ]


def refuse_other_work(work: Mapping[str, Scalar], baseline: Mapping[str, Any]) -> None:
    """UserError naming all that differs, unless both runs did the same."""
    if found := differences(work, baseline["work"]):
        raise UserError(f"{baseline['run']} did other work and cannot be the baseline", found)
