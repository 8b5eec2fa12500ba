"""Write a page of tables from the results of a campaign."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from _bench import markdown, write_text

from _gpu.items import ITEMS
from _gpu.notes import failures, read_notes
from _gpu.setting import place_of

GIB = 2**30
Results = Mapping[str, Mapping[str, Any]]
Table = tuple[Sequence[str], Sequence[Sequence[str]]]


def write_summary(out: Path) -> Path:
    """Write OUT/summary.md from OUT/ITEM.json, and return its path."""
    write_text(out / "summary.md", "\n".join(page(read_results(out))) + "\n")
    return out / "summary.md"


def read_results(out: Path) -> Results:
    """Return what the items have stored, in the order of the campaign."""
    return {name: found for name in ITEMS if (found := read_notes(out / f"{name}.json"))}


def page(results: Results) -> Iterator[str]:
    """Yield the page: the state of each item, and a table for each that has numbers."""
    machine = next((found["machine"] for found in results.values() if "machine" in found), None)
    yield f"# Measured on {machine['gpu'] or machine['card'] if machine else 'nothing yet'}"
    yield ""
    if any(found.get("size") != "full" for found in results.values()):
        yield "**A rehearsal at tiny size: these numbers say nothing about a GPU.**"
        yield ""
    yield "`scripts/gpu_campaign` has written this page. Times are medians (quartiles); ratios are of one run."
    yield ""
    rows = [[name, item.about, _state(results.get(name))] for name, item in ITEMS.items()]
    yield markdown(["item", "what", "state"], rows)
    for name, found in results.items():
        header, cells = TABLES[name]({k: v for k, v in found["points"].items() if "error" not in v})
        if cells:
            yield f"\n## {name}\n"
            yield markdown(header, cells)
        if "machine" in found:
            yield f"\n{found['kind'].capitalize()} on {place_of(found['machine'])}."


def _state(found: Mapping[str, Any] | None) -> str:
    if found is None:
        return "not yet run"
    if wrong := failures(found):
        return "failed: " + "; ".join(wrong).replace("|", "\\|")
    return "done" if found["complete"] else f"{len(found['points'])} points so far"


def ms(spread: Mapping[str, float]) -> str:
    return f"{spread['median'] * 1e3:.2f} ({spread['low'] * 1e3:.2f} – {spread['high'] * 1e3:.2f})"


def ratio_text(spread: Mapping[str, float]) -> str:
    return f"{spread['median']:.3f} ({spread['low']:.3f} – {spread['high']:.3f})"


def gib(nbytes: float | None) -> str:
    return "" if nbytes is None else f"{nbytes / GIB:.2f}"


def _run(points: Results) -> Table:
    header = ["video", "videos made", "denoise s", "tensors' peak GiB", "process's peak GiB", "predicted GiB"]
    peaks = ("tensors_peak_bytes", "process_peak_bytes", "predicted_peak_bytes")
    return header, [
        [name, str(len(p["videos"])), f"{p['times']['denoise_s']:.1f}", *(gib(p[key]) for key in peaks)]
        for name, p in points.items()
    ]


def _memory(points: Results) -> Table:
    cells: list[Sequence[str]] = []
    for p in points.values():
        cells += [[f"with {stage}", gib(nbytes)] for stage, nbytes in p["outside_bytes"].items()]
        cells.append(["set aside by the plan", gib(p["planned_bytes"])])
    return ["memory that is not for tensors", "GiB"], cells


def _attention(points: Results) -> Table:
    header = ["tokens", "kernel", "version", "ms", "TFLOP/s", "time / fastest", "largest error", "`auto`"]
    cells = [
        [
            str(p["tokens"]), name, k["version"], ms(k["s"]), f"{k['tflops']:.0f}", ratio_text(k["time_over_fastest"]),
            f"{k['max_abs_error']:.1e}", "yes" if name == p["auto"] else "",
        ]
        for p in points.values() for name, k in sorted(p["kernels"].items(), key=lambda kernel: -kernel[1]["tflops"])
    ]  # fmt: skip
    return header, cells


def _ceilings(points: Results) -> Table:
    products = points.get("products", {}).get("shapes", {})
    cells: list[Sequence[str]] = [
        [f"product, {name}: {' × '.join(map(str, p['rows_inputs_outputs']))}", ms(p["s"]), f"{p['tflops']:.0f} TFLOP/s"]
        for name, p in products.items()
    ]
    for kind in ("memory", "copies"):
        cells += [
            [name if kind == "copies" else f"memory, {name}", ms(p["s"]), f"{p['gb_s']:.1f} GB/s"]
            for name, p in points.get(kind, {}).items()
            if isinstance(p, Mapping)
        ]
    return ["ceiling", "ms", "rate"], cells


def _step(points: Results) -> Table:
    cells: list[Sequence[str]] = []
    for kind, p in points.get("kinds", {}).get("kinds", {}).items():
        rate = "" if p["tflops"] is None else f"{p['tflops']:.0f} TFLOP/s"
        cells.append([f"one row: {kind}", f"{p['s'] * 1e3:.1f} ({p['share']:.1%} of the kernels)", "", rate, "", ""])
    for rows, p in points.get("rows", {}).items():
        if isinstance(p, Mapping):
            predicted = "" if p["predicted_s"] is None else f"{p['predicted_s'] * 1e3:.0f}"
            memory = (gib(p["allocated_bytes"]), gib(p["predicted_bytes"]))
            cells.append([f"rows: {rows}", ms(p["s"]), predicted, f"{p['tflops']:.0f} TFLOP/s", *memory])
    if launch := points.get("launch"):
        cells.append([f"{launch['tokens']} tokens, {launch['blocks']} blocks", ms(launch["s"]), "", "", "", ""])
    return ["step", "ms", "predicted ms", "rate", "peak GiB", "predicted GiB"], cells


def _vae(points: Results) -> Table:
    cells: list[Sequence[str]] = []
    if decode := points.get("decode"):
        tiles = [tile["s"] for tile in decode["tiles"]]
        what = f"decode, {len(tiles)} tiles of {min(tiles) * 1e3:.0f} to {max(tiles) * 1e3:.0f} ms"
        cells.append([what, f"{decode['s'] * 1e3:.0f}", gib(decode["allocated_bytes"]), ""])
    if encode := points.get("encode"):
        cells.append(
            [f"encode, {encode['frames']} frames", f"{encode['s'] * 1e3:.0f}", gib(encode["allocated_bytes"]), ""]
        )
    if layouts := points.get("layouts"):
        for name in ("contiguous", "channels last"):
            over = ratio_text(layouts["contiguous_over_channels_last"]) if name == "contiguous" else "1"
            p = layouts[name]
            cells.append([f"decode a tile, {name}", ms(p["s"]), gib(p["allocated_bytes"]), over])
    return ["VAE", "ms", "peak GiB", "time / channels last"], cells


def _offload(points: Results) -> Table:
    header = [
        "cap",
        "placement",
        "video",
        "step, whole ms",
        "placed / whole",
        "transfer ms",
        "hidden",
        "bits",
        "peak GiB",
    ]
    cells = [
        [
            cap, p["placement"], video, ms(v["whole_s"]), ratio_text(v["placed_over_whole"]), ms(p["transfer_s"]),
            f"{v['hidden_share']:.0%}", "equal" if v["equal_bits"] else "DIFFERENT", gib(v["allocated_bytes"]),
        ]
        for cap, p in points.items() for video, v in p.items() if isinstance(v, Mapping) and "whole_s" in v
    ]  # fmt: skip
    return header, cells


def _share(points: Results) -> Table:
    header = ["simulated: one rank of", "layout", "step ms", "time / alone", "efficiency without communication"]
    cells = [
        [ranks, v["layout"], ms(v["s"]), ratio_text(v["share_over_alone"]), f"{v['compute_efficiency']:.1%}"]
        for ranks, p in points.items()
        for v in p.values()
        if isinstance(v, Mapping) and "layout" in v
    ]
    return header, cells


def _load(points: Results) -> Table:
    cells: list[Sequence[str]] = []
    for p in points.values():
        cells += [
            [name, ms(v["s"]), f"{v['gb_s']:.2f}"] for name, v in p.items() if isinstance(v, Mapping) and "gb_s" in v
        ]
        cells += [
            [f"product / load_file, {how}", ratio_text(p[f"product_over_load_file_{how}"]), ""]
            for how in ("cold", "warm")
        ]
        cells.append(["file", f"{p['file_bytes'] / 1e9:.1f} GB, {'equal' if p['equal'] else 'DIFFERENT'} weights", ""])
    return ["way", "ms", "GB/s"], cells


def _nvml(points: Results) -> Table:
    cells: list[Sequence[str]] = [
        [when, field, *("" if v[key] is None else f"{v[key]:g}" for key in ("before", "nvidia_smi", "after"))]
        for when, p in points.items()
        for field, v in p.get("fields", {}).items()
    ]
    if cost := points.get("cost of a reading"):
        cells.append(["cost", "a reading, ms", ms(cost["wall_s"]), "", ""])
    return ["GPU", "reading", "sampler", "nvidia-smi", "sampler after"], cells


def _telemetry(points: Results) -> Table:
    cells = [
        [video, clock, ratio_text(v), str(v["rounds"])]
        for video, p in points.items()
        for clock, v in p["time_with_over_without"].items()
    ]
    return ["step", "clock", "time with recording / without (95% confidence)", "rounds"], cells


TABLES: dict[str, Callable[[Results], Table]] = {
    "run": _run, "memory": _memory, "attention": _attention, "ceilings": _ceilings, "step": _step, "vae": _vae,
    "offload": _offload, "share": _share, "load": _load, "nvml": _nvml, "telemetry": _telemetry,
}  # fmt: skip
