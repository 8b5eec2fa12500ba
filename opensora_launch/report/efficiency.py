"""How much faster n ranks are than a named baseline, and which runs may be compared.

Strong scaling: efficiency = t_base * gpus_base / (t_n * n), for equal work. The baseline is another run, measured on
these hosts or stored from others, or the time on one rank, estimated from this run's own parts.
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from opensora_launch.errors import UserError
from opensora_launch.plan.plan import Plan
from opensora_launch.report.accounting import RankAccount
from opensora_launch.report.wording import Message, message, say
from opensora_launch.schema.autoencoder import VaeKind
from opensora_launch.schema.plain import flat

MEASURED, STORED, PREDICTED = "measured", "stored", "predicted"

Scalar = str | int | float | bool | None


@dataclass(frozen=True)
class Times:
    """Seconds of the whole job, and of the busiest rank's denoise phases, on a number of GPUs."""

    gpus: int
    job_s: float
    denoise_s: float


@dataclass(frozen=True)
class Baseline:
    kind: str  # "measured" here, "stored", or "predicted"
    run: str  # the run that was measured, or that the prediction is from
    how: Message
    times: Times


def efficiency(times: Times, baseline: Baseline) -> dict[str, Any]:
    """Compare both scopes with one baseline, as the report says it.

    Above 1 is a measurement error until shown otherwise: `fault` says so, or is None.
    """
    base = baseline.times
    job = _scaling(base.job_s, times.job_s, base.gpus, times.gpus)
    denoise = _scaling(base.denoise_s, times.denoise_s, base.gpus, times.gpus)
    above = [message("job_above", efficiency=job["efficiency"])] if job["efficiency"] > 1 else []
    above += [message("denoise_above", efficiency=denoise["efficiency"])] if denoise["efficiency"] > 1 else []
    fault = message("above_one", scopes=above) if above else None
    return {"baseline": asdict(baseline), "job": job, "denoise": denoise, "fault": fault}


def _scaling(t_base_s: float, t_s: float, gpus_base: int, gpus: int) -> dict[str, Any]:
    return {
        "t_base_s": t_base_s,
        "gpus_base": gpus_base,
        "t_s": t_s,
        "gpus": gpus,
        "speedup": t_base_s / t_s,
        "efficiency": t_base_s * gpus_base / (t_s * gpus),
    }


def measured_baseline(report: Mapping[str, Any], hosts: Sequence[str]) -> Baseline:
    """Use another run's report as a baseline; UserError if it has no complete measurement.

    It is measured here if it ran on some of these `hosts`, else it is stored: its machine may differ in ways that no
    report shows.
    """
    refuse_without_times(report, "be a baseline")
    times, theirs = Times(**report["times"]), report["machine"]["hosts"]
    device, engine = report["work"]["device_name"], engine_of(report)
    ran = {"run": report["run"], "gpus": times.gpus, "device": device, "engine": engine}
    if theirs and set(theirs) <= set(hosts):
        return Baseline(MEASURED, report["run"], message("how_measured", **ran), times)
    return Baseline(STORED, report["run"], message("how_stored", **ran, hosts=theirs), times)


def refuse_without_times(report: Mapping[str, Any], use: str) -> None:
    """UserError with the reason where a run has no complete measurement."""
    if report["times"] is None:
        reason = report["efficiency_reason"]
        said = say(reason) if isinstance(reason, Mapping) else str(reason)  # a text up to schema 3
        raise UserError(f"{report['run']} cannot {use}", [said])


def engine_of(report: Mapping[str, Any]) -> str:
    """The engine that ran it; reports that do not name one are older than the second engine."""
    return str(report.get("engine", "native"))


def predicted_baseline(run: str, ranks: Sequence[RankAccount]) -> Baseline:
    """Estimate the time on one rank from a run on several."""
    shared = sum(r.parts[part] for r in ranks for part in ("compute", "text", "image", "vae", "save"))
    serial = sum(max(r.parts[part] for r in ranks) for part in ("setup", "load", "compile", "other"))
    times = Times(1, shared + serial, sum(r.parts["compute"] for r in ranks))
    return Baseline(PREDICTED, run, message("how_predicted", run=run), times)


def comparable_work(
    plan: Plan, *, device_names: Sequence[str], attention: str | None, row_forwards: int
) -> dict[str, Scalar]:
    """Everything that must be equal for two runs to be compared, flat. Prompts and seeds do not change the work."""
    shape, sampling = plan.geometry, plan.sampling
    model = asdict(plan.model)
    if plan.model.vae.kind is VaeKind.causal:  # reports of earlier versions know no other kind
        del model["vae"]["kind"], model["vae"]["dc_ae"]
    work: dict[str, Scalar] = {
        "device": plan.machine.device,
        "device_name": " + ".join(sorted(set(device_names))),
        "threads_per_rank": plan.threads_per_rank if plan.machine.device == "cpu" else None,
        "precision": plan.precision,
        "attention": attention or plan.attention,
        **{name: getattr(shape, name) for name in ("height_px", "width_px", "num_frames", "text_tokens")},
        "videos": len(plan.videos),
        "num_steps": sampling.num_steps,
        "row_forwards": row_forwards,
        **{name: getattr(sampling, name) for name in ("batch_size", "state_dtype", "noise_device")},
        "profile": plan.profile,
    }
    if plan.images:
        size, steps = plan.images.geometry, plan.images.sampling.num_steps
        made = f"{len(plan.images.videos)} by {plan.images.model.name}"
        work["images"] = f"{made}, {size.width_px}x{size.height_px}, {steps} steps"
    if plan.numerics.fp8_products:
        work["numerics.fp8_products"] = True
    compared = {"model": {part: model[part] for part in ("name", "init", "mmdit", "vae", "text")}}
    known = flat(compared | {"placement": asdict(plan.placement)})
    return work | {key: str(leaf) if isinstance(leaf, list | str) else leaf for key, leaf in known}


def differences(work: Mapping[str, Scalar], other: Mapping[str, Scalar]) -> list[Message]:
    """Return one message per thing that two runs did differently: `here` and in the `baseline`."""
    keys = [*work, *(key for key in other if key not in work)]
    pairs = ((key, work.get(key, "unknown"), other.get(key, "unknown")) for key in keys)
    return [message("difference", key=key, here=str(a), baseline=str(b)) for key, a, b in pairs if a != b]


def refuse_other_work(work: Mapping[str, Scalar], baseline: Mapping[str, Any]) -> None:
    """UserError with every difference, unless both runs did the same work."""
    if found := differences(work, baseline["work"]):
        raise UserError(f"{baseline['run']} did other work and cannot be the baseline", [say(line) for line in found])
