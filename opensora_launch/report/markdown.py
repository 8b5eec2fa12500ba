"""report.json as text: report.md for people, and a few lines for the terminal. Nothing here measures or decides."""

import textwrap
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from opensora_launch.report.accounting import PARTS
from opensora_launch.report.machine_markdown import links, machines, prediction
from opensora_launch.report.rates import karp_flatt_text
from opensora_launch.report.words import counted, gib, md_table, md_text, secs, secs_of

PROMPT_CHARS = 100
BAR_CHARS = 30
MOST_FINDINGS = 3  # in the summary
LEAST_SHARE = 0.005  # of a part in the summary
LEAST_WAIT = 0.02  # of what a late rank was in, to be named
NOTHING_FOUND = "No slow rank, slow link, throttling or shortage of memory."
SCOPES = {"job": "the whole job", "denoise": "denoising alone"}


def markdown(report: Mapping[str, Any]) -> str:
    """The whole page."""
    blocks = [*_header(report), *_used(report), *_found(report)]
    for attempt in report["attempts"]:
        blocks += _attempt(attempt, alone=len(report["attempts"]) == 1)
    blocks += [*links(report["links"]), *prediction(report["prediction"]), *_samples(report["samples"])]
    blocks += ["## Weaker than it looks, or not known", "\n".join(f"- {text}" for text in _all_unknown(report))]
    return "\n\n".join(blocks) + "\n"


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """Where the time went and how well the ranks were used, in at most 80 columns, for the terminal."""
    lines = _wrapped(_approximate(report)) if report["approximate"] else []
    ranks = [rank for attempt in report["attempts"] for rank in attempt["ranks"]]
    if ranks:
        total = sum(r["wall_s"] for r in ranks)
        tries = len(report["attempts"])
        of_ranks = f"{tries} attempts" if tries > 1 else counted(len(ranks), "rank")
        lines.append(f"where the time went ({of_ranks}, {secs(total)} s of all ranks together):")
        sums = _sums(ranks)
        for part in sorted(PARTS, key=lambda p: -sums[p]):
            share = sums[part] / total if total else 0.0
            if share >= LEAST_SHARE:
                bar = "#" * max(1, round(share * BAR_CHARS))
                lines.append(f"  {part:<13} {sums[part]:>9.2f} s {share:>5.0%}  {bar}")
    for line in _finding_lines(report)[:MOST_FINDINGS]:
        lines += _wrapped(line)
    found = report["efficiency"]
    if found is None:
        lines += _wrapped(f"efficiency: none, {report['efficiency_reason']}")
        return lines
    for scope, name in SCOPES.items():
        s = found[scope]
        lines.append(f"efficiency of {name}: {s['efficiency']:.0%} ({s['speedup']:.2f}x on {s['gpus']} ranks)")
    lines += _wrapped(f"  baseline, {found['baseline']['kind']}: {found['baseline']['name']}")
    return lines + (_wrapped(f"  {found['fault']}") if found["fault"] else [])


def _header(report: Mapping[str, Any]) -> list[str]:
    work, machine, videos = report["work"], report["machine"], report["videos"]
    blocks = [f"# Run {report['run']}: {report['status']}, {videos['done']} of {counted(videos['asked'], 'video')}"]
    blocks += [f"**{_approximate(report)}.**"] if report["approximate"] else []
    if report["command"]:
        blocks.append(f"```\n{report['command']}\n```")
    threads = f", {counted(machine['threads_per_rank'], 'thread')} a rank" if machine["device"] == "cpu" else ""
    layouts = "; ".join(f"{layout} for {counted(int(rows), 'row')}" for rows, layout in report["layouts"].items())
    name = ", ".join(machine["device_names"]) or machine["device"]
    hosts = f" on {', '.join(machine['hosts'])}" if machine["hosts"] else ""
    places = dict.fromkeys(attempt["placement"] for attempt in report["attempts"])
    facts = [
        f"Work: {work['model.name']}, {work['width_px']} x {work['height_px']} px, "
        f"{counted(work['num_frames'], 'frame')}, {work['num_steps']} steps, {work['row_forwards']} row-forwards, "
        f"{work['precision']}, attention {work['attention']}",
        f"Ranks: {machine['ranks']}{hosts}, each {md_text(name)}{threads}",
        f"Layout: {layouts}; engine {report['engine']}",
        *([f"Weights: {', then '.join(md_text(place) for place in places)}"] if places else []),
        f"Made by opensora_launch {report['version']}" + _versions(report["environment"]),
    ]
    blocks.append("\n".join(f"- {fact}" for fact in facts))
    return blocks


def _approximate(report: Mapping[str, Any]) -> str:
    return f"approximate, the video differs by more than rounding: {', '.join(report['approximate'])}"


def _versions(environment: Mapping[str, Any]) -> str:
    """What decides how fast it is and whether it runs again: a comma before it, as it follows other words."""
    versions = environment["versions"]
    said = [f"{name} {versions[name]}" for name in ("python", "torch", "cuda", "nccl") if name in versions]
    said += [f"driver {', '.join(environment['drivers'])}"] if environment["drivers"] else []
    said += [f"environment {environment['profile']}"] if environment["profile"] else []
    return "".join(f", {md_text(word)}" for word in said)


def _used(report: Mapping[str, Any]) -> list[str]:
    found = report["efficiency"]
    blocks = ["## How well the ranks were used"]
    if found is None:
        return [*blocks, f"No efficiency is given: {report['efficiency_reason']}."]
    rows = []
    for scope, name in SCOPES.items():
        s = found[scope]
        base = f"{secs(s['t_base_s'])} s on {s['gpus_base']}"
        rows.append([name, base, f"{secs(s['t_s'])} s on {s['gpus']}", f"{s['speedup']:.2f}", f"{s['efficiency']:.1%}"])
    base = found["baseline"]
    blocks.append(md_table(["time of", f"baseline ({base['kind']})", "this run", "speed-up", "efficiency"], rows))
    blocks.append(f"Baseline ({base['kind']}): {md_text(base['name'])}. How: {md_text(base['how'])}.")
    return blocks + ([f"**Fault: {found['fault']}**"] if found["fault"] else []) + _rates(report)


def _found(report: Mapping[str, Any]) -> list[str]:
    """Findings of all attempts, and advice."""
    lines = _finding_lines(report)
    blocks = ["## What was found", "\n".join(f"- {md_text(line)}" for line in lines) or NOTHING_FOUND]
    if report["advice"]:
        lines = [
            f"{a['what']}: {a['change']}, {secs(a['now_s'])} -> {secs(a['then_s'])} s (predicted)"
            for a in report["advice"]
        ]
        blocks += ["## What to change", "\n".join(f"- {md_text(line)}" for line in lines)]
    return blocks


def _finding_lines(report: Mapping[str, Any]) -> list[str]:
    return [_finding_line(f, attempt["gpus"]) for attempt in report["attempts"] for f in attempt["findings"]]


def _finding_line(found: Mapping[str, Any], gpus: Sequence[Mapping[str, Any]]) -> str:
    """Who, where, why, and what it cost. Evidence on a GPU begins with its index; a slow rank's does not."""
    ranks = ", ".join(map(str, found["ranks"]))
    gpu = next((f"GPU {g['index']}" for g in gpus if g["uuid"] == found["gpu"]), found["gpu"])
    where = f"{found['host']}, {gpu}," if gpu else found["host"]
    title: str = {
        "slow_rank": f"rank {ranks} on {where} is slow ({found['cause'].replace('_', ' ')})",
        "slow_link": f"the link between ranks {ranks} is slow",
        "memory": f"memory was short on {found['host']}",
        "throttled": f"the GPU of rank {ranks} on {found['host']} was throttled",
        "shared_gpu": f"the GPU of rank {ranks} on {found['host']} was shared",
        "gpu_error": f"the GPU of rank {ranks} on {found['host']} reported an error",
    }[found["kind"]]
    cost = f" (cost the others {secs(found['seconds'])} s)" if found["seconds"] else ""
    return f"{title}: {found['evidence']}{cost}"


def _rates(report: Mapping[str, Any]) -> list[str]:
    """FLOP/s, links, energy and cost, in a line each; what is not known is left to report.json."""
    lines = []
    if (rates := report["rates"]) and rates["flops_per_s"]:
        share = f", {rates['mfu']:.1%} of the card's peak" if rates["mfu"] is not None else ""
        lines.append(f"A rank computed {rates['flops_per_s'] / 1e12:.3g} TFLOP/s over its denoise phases{share}.")
    if report["energy"] and report["energy"]["joules_per_video"] is not None:
        lines.append(f"The GPUs took {report['energy']['joules_per_video'] / 1000:.3g} kJ a video.")
    if report["cost"] and report["cost"]["usd_per_video"] is not None:
        lines.append(f"A video cost {report['cost']['usd_per_video']:.4f} dollars.")
    if report["serial_share"] and (share_of := report["serial_share"]["job"]) is not None:
        lines.append(f"Serial share by Karp and Flatt: {karp_flatt_text(share_of)}.")
    return [" ".join(lines)] if lines else []


def _attempt(attempt: Mapping[str, Any], *, alone: bool) -> list[str]:
    title = "## Where the time went" + ("" if alone else f": attempt {attempt['attempt']}, {attempt['status']}")
    blocks = [title]
    if failure := attempt["failure"]:
        place = ", ".join(f"{k} {failure[k]}" for k in ("phase", "step", "collective") if failure[k] is not None)
        blocks.append(
            f"Failed on rank {failure['rank']} of host {failure['host']}, {failure['kind']}{', ' * bool(place)}{place}:"
        )
        blocks.append("\n".join(f"    {line}" for line in failure["message"].splitlines()))
        blocks.append(f"Log: attempts/{attempt['attempt']}/logs/rank{failure['rank']}.log")
    ranks = attempt["ranks"]
    if not ranks:
        return [*blocks, "No rank left events."]
    blocks.append(_by_rank(ranks))
    if kinds := _total(r["compute_by_kind"] for r in ranks):
        blocks.append(f"Compute of all ranks by kind: {_seconds(kinds)}.")
    axes = _total(r["communication_by_axis"] for r in ranks)
    if axes:
        blocks.append(f"Communication of all ranks by axis: {_seconds(axes)}.")
    blocks += _steps(attempt["steps"])
    return [*blocks, *_slowest(attempt), *machines(attempt)]


def _by_rank(ranks: Sequence[Mapping[str, Any]]) -> str:
    """Seconds and percent of the rank's own wall time; parts that no rank has are left out."""
    sums = _sums(ranks)
    parts = [part for part in PARTS if sums[part] > 0]
    rows = [
        [f"{r['rank']}{'' if r['complete'] else ' (cut)'}", secs(r["wall_s"])]
        + [secs_of(r["parts"][part], r["wall_s"]) for part in parts]
        + [gib(r["peak_memory_bytes"])]
        for r in ranks
    ]
    if len(ranks) > 1:
        total = sum(r["wall_s"] for r in ranks)
        rows.append(["all", secs(total), *(secs_of(sums[part], total) for part in parts), ""])
    return md_table(["rank", "wall s", *(f"{part} s" for part in parts), "peak GiB"], rows)


def _steps(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        [str(s["rows"]), s["layout"], str(s["count"]), f"{s['median_s']:.3f}", f"{s['min_s']:.3f} to {s['max_s']:.3f}"]
        for s in steps
    ]
    return [md_table(["rows of a step", "layout", "steps", "median s", "range s"], rows, (0, 1))] if rows else []


def _slowest(attempt: Mapping[str, Any]) -> list[str]:
    """The rank that was waited for most, and what it was in meanwhile."""
    if not attempt["waited_for"]:
        return []
    most = attempt["waited_for"][0]
    while_in = _seconds({k: v for k, v in most["while_in"].items() if v >= LEAST_WAIT * most["seconds"]})
    who = ", ".join(most["by"])
    return [
        f"Waited for most: rank {most['rank']} on host {most['host']}, {secs(most['seconds'])} s "
        f"(by rank {who}), while it was in {while_in}."
    ]


def _samples(samples: Sequence[Mapping[str, Any]]) -> list[str]:
    rows = [
        [", ".join(f"[{f}]({f})" for f in s["files"]) or f"{s['name']}: not made", str(s["seed"]), _prompt(s["prompt"])]
        for s in samples
    ]
    return ["## Samples", md_table(["file", "seed", "prompt"], rows, (0, 2))] if rows else []


def _all_unknown(report: Mapping[str, Any]) -> list[str]:
    several = len(report["attempts"]) > 1
    found = list(report["unknown"])
    for attempt in report["attempts"]:
        found += [f"attempt {attempt['attempt']}: {text}" if several else text for text in attempt["unknown"]]
    return [md_text(text) for text in found]


def _sums(ranks: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {part: sum(r["parts"][part] for r in ranks) for part in PARTS}


def _total(dicts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for found in dicts:
        for name, seconds in found.items():
            total[name] = total.get(name, 0.0) + seconds
    return total


def _seconds(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {secs(seconds)} s" for name, seconds in parts.items())


def _prompt(text: str) -> str:
    one_line = " ".join(text.split())
    return md_text(one_line if len(one_line) <= PROMPT_CHARS else one_line[: PROMPT_CHARS - 1] + "…")


def _wrapped(text: str) -> list[str]:
    """Lines of at most 80 columns; a longer word stays whole."""
    indent = " " * (len(text) - len(text.lstrip()))
    return textwrap.wrap(
        text.strip(), 80, initial_indent=indent, subsequent_indent=indent + "  ", break_long_words=False
    )
