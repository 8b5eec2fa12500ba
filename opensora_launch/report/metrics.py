"""A run's numbers as metrics.prom: OpenMetrics, which Prometheus reads too, through node_exporter's textfile collector.

https://prometheus.io/docs/specs/om/open_metrics_spec. A unit is the end of a metric's name.
"""

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

from opensora_launch.report.accounting import WALL_PARTS

UNITS_OF_METRICS = (
    "bytes_per_second", "flops_per_second", "seconds", "bytes", "joules", "watts", "celsius", "ratio", "usd",
)  # fmt: skip
METRIC_HELP = {
    "videos_asked": "Videos that were requested.",
    "videos_done": "Videos that are made.",
    "efficiency_ratio": "t_base x gpus_base / (t_n x n) of the whole job or of denoising alone.",
    "speedup_ratio": "t_base / t_n of the whole job or of denoising alone.",
    "flops_per_second": "FLOP/s of a rank over its denoise phases.",
    "mfu_ratio": "Those FLOP/s as a share of the card's dense peak.",
    "energy_joules": "Energy of the GPUs over all attempts.",
    "video_energy_joules": "Energy of the GPUs per video.",
    "device_seconds": "Wall time of all ranks together, over all attempts.",
    "cost_usd": "Rent of the devices for that time, at the given price.",
    "wall_seconds": "Wall time of the last attempt.",
    "rank_peak_memory_bytes": "Peak memory of a rank.",
    "rank_seconds": "Wall time of a rank by part; the parts add up to its wall time.",
    "loss_ratio": "A loss as a share of the time of all ranks; losses may overlap.",
    "findings": "Findings in the last attempt, by kind.",
    "gpu_power_mean_watts": "Mean power of a GPU.",
    "gpu_memory_peak_bytes": "Peak memory of a GPU, of all processes on it.",
    "gpu_temperature_max_celsius": "Highest temperature of a GPU.",
    "gpu_ecc_uncorrected": "Memory errors during the attempt that ECC could not correct.",
    "gpu_xids": "Different XIDs that the driver reported during the attempt.",
    "gpu_nvlink_bytes": "Bytes that a GPU sent or received over NVLink.",
    "gpu_pcie_bytes_per_second": "Mean rate at which a GPU sent or received over PCIe.",
}

Metric = tuple[str, Any, dict[str, Any]]  # name, value, labels


def metrics(report: Mapping[str, Any]) -> str:
    """The report's numbers, those that are known, as a whole file."""
    found: dict[str, list[str]] = defaultdict(list)
    for name, value, labels in (*_of_run(report), *(m for a in report["attempts"][-1:] for m in _of_attempt(a))):
        if value is not None:
            found[name].append(f"opensora_{name}{{{_labels({'run': report['run'], **labels})}}} {value!r}")
    lines = []
    for name, values in found.items():
        unit = next((unit for unit in UNITS_OF_METRICS if name.endswith(unit)), "")
        lines.append(f"# TYPE opensora_{name} gauge")
        lines += [f"# UNIT opensora_{name} {unit}"] if unit else []
        lines += [f"# HELP opensora_{name} {METRIC_HELP[name]}", *values]
    return "\n".join([*lines, "# EOF"]) + "\n"


def _of_run(report: Mapping[str, Any]) -> Iterator[Metric]:
    yield "videos_asked", report["videos"]["asked"], {}
    yield "videos_done", report["videos"]["done"], {}
    if found := report["efficiency"]:
        for scope in ("job", "denoise"):
            where = {"scope": scope, "baseline": found["baseline"]["kind"]}
            yield "efficiency_ratio", found[scope]["efficiency"], where
            yield "speedup_ratio", found[scope]["speedup"], where
    if rates := report["rates"]:
        yield "flops_per_second", rates["flops_per_s"], {}
        yield "mfu_ratio", rates["mfu"], {}
        yield "energy_joules", report["energy"]["joules"], {}
        yield "video_energy_joules", report["energy"]["joules_per_video"], {}
        yield "device_seconds", report["cost"]["gpu_hours"] * 3600, {}
        yield "cost_usd", report["cost"]["usd"], {}


def _of_attempt(attempt: Mapping[str, Any]) -> Iterator[Metric]:
    yield "wall_seconds", attempt["wall_s"], {}
    for r in attempt["ranks"]:
        who = {"rank": r["rank"], "host": r["host"]}
        yield "rank_peak_memory_bytes", r["peak_memory_bytes"], who
        yield from (("rank_seconds", r["parts"][part], who | {"part": part}) for part in WALL_PARTS)
    for number, loss in enumerate(attempt["losses"]):
        of = (loss.get("doing") or loss.get("what") or {}).get("code", loss.get("axis", ""))
        yield "loss_ratio", loss["share"], {"place": number + 1, "kind": loss["code"], "of": of}
    for kind, count in sorted(Counter(f["code"] for f in attempt["findings"]).items()):
        yield "findings", count, {"kind": kind}
    for gpu in attempt["gpus"]:
        where = {"gpu": gpu["index"], "uuid": gpu["uuid"], "host": gpu["host"]}
        yield "gpu_power_mean_watts", gpu["power_mean_w"], where
        yield "gpu_memory_peak_bytes", gpu["memory_peak_bytes"], where
        yield "gpu_temperature_max_celsius", gpu["temperature_max_c"], where
        yield "gpu_ecc_uncorrected", gpu["ecc_uncorrected"], where
        yield "gpu_xids", len(gpu["xids"]), where
        for way in ("tx", "rx"):
            yield "gpu_nvlink_bytes", gpu[f"nvlink_{way}_bytes"], where | {"way": way}
            yield "gpu_pcie_bytes_per_second", gpu[f"pcie_{way}_bytes_per_s"], where | {"way": way}


def _labels(labels: Mapping[str, Any]) -> str:
    escaped = {k: str(v).replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") for k, v in labels.items()}
    return ",".join(f'{name}="{value}"' for name, value in escaped.items())
