"""report.json as text: report.md, and a summary for the terminal. Nothing here measures or decides."""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from opensora_launch.report.accounting import WALL_PARTS
from opensora_launch.report.markdown_tables import (
    gib,
    link_table,
    machines,
    md_list,
    md_table,
    md_text,
    prediction_table,
    secs,
    secs_of,
    wrapped,
)
from opensora_launch.report.rates import karp_flatt_text, used_text
from opensora_launch.report.wording import Message, label, message, say

PROMPT_CHARS = 100
SHARE_BAR_CHARS = 30
MOST_FINDINGS = 2  # in the summary, after the verdict
LEAST_PART = 0.005  # of the time, in the summary
LEAST_WAIT = 0.02  # of the time that a late rank was waited for, for a part to be named
SCOPES = {"job": "the whole job", "denoise": "denoising alone"}


def run_markdown(report: Mapping[str, Any]) -> str:
    """The whole of report.md."""
    blocks = [*_header(report), *_used(report), *_found(report)]
    for attempt in report["attempts"]:
        blocks += _attempt(attempt, alone=len(report["attempts"]) == 1)
    blocks += [*link_table(report["links"]), *prediction_table(report["prediction"]), *_samples(report)]
    blocks += [f"## {label('unknown')}", md_list(_all_unknown(report))]
    return "\n\n".join(blocks) + "\n"


def summary_lines(report: Mapping[str, Any]) -> list[str]:
    """Where the time went and how well the ranks were used, in at most 80 columns, for the terminal."""
    lines = wrapped(_approximate(report)) if report["approximate"] else []
    lines += wrapped(say(report["verdict"]))
    ranks = [rank for attempt in report["attempts"] for rank in attempt["ranks"]]
    if ranks:
        total = sum(r["wall_s"] for r in ranks)
        attempts = len(report["attempts"])
        of_ranks = f"{attempts} attempts" if attempts > 1 else _count(len(ranks), "rank")
        lines.append(f"where the time went ({of_ranks}, {secs(total)} s of all ranks together):")
        sums = _total(r["parts"] for r in ranks)
        for part in sorted(WALL_PARTS, key=lambda p: -sums[p]):
            share = sums[part] / total if total else 0.0
            if share >= LEAST_PART:
                bar = "#" * max(1, round(share * SHARE_BAR_CHARS))
                lines.append(f"  {part:<13} {sums[part]:>9.2f} s {share:>5.0%}  {bar}")
    for found in sorted(_findings(report), key=lambda f: f["code"] != "gpu_error")[:MOST_FINDINGS]:
        lines += wrapped(_finding(found))
    used = wrapped(used_text(report))
    used_well = report["efficiency"]
    if used_well is None:
        reason = report["efficiency_reason"]
        said = reason["code"] == report["verdict"]["code"]
        return lines + ([] if said else wrapped(f"{label('no_efficiency')}. {say(reason)}")) + used
    for scope, name in SCOPES.items():
        s = used_well[scope]
        lines.append(f"efficiency of {name}: {s['efficiency']:.0%} ({s['speedup']:.2f}x on {s['gpus']} ranks)")
    base = used_well["baseline"]
    lines += wrapped(f"  baseline, {base['kind']}: {label('baseline_' + base['kind'], run=base['run'])}")
    return lines + (wrapped(f"  {say(used_well['fault'])}") if used_well["fault"] else []) + used


def advice_lines(report: Mapping[str, Any]) -> list[str]:
    """The advice that would save most, with what it would save, for the terminal; empty if there is none."""
    return [line for advice in report["advice"][:1] for line in wrapped(f"{label('advice')}: {_advice_text(advice)}")]


def _advice_text(advice: Mapping[str, Any]) -> str:
    times = f"({secs(advice['now_s'])} -> {secs(advice['then_s'])} s predicted)"
    return f"{say(advice['what'], 'title').removesuffix('.')}. {say(advice['do'])} {times}"


def _header(report: Mapping[str, Any]) -> list[str]:
    work, machine, videos = report["work"], report["machine"], report["videos"]
    blocks = [f"# Run {report['run']}: {report['status']}, {videos['done']} of {_count(videos['asked'], 'video')}"]
    blocks += [f"**{md_text(_approximate(report))}**"] if report["approximate"] else []
    blocks.append(f"**{md_text(say(report['verdict']))}**")
    if report["command"]:
        blocks.append(f"```\n{report['command']}\n```")
    threads = f", {_count(machine['threads_per_rank'], 'thread')} per rank" if machine["device"] == "cpu" else ""
    layouts = "; ".join(f"{layout} for {_count(int(rows), 'row')}" for rows, layout in report["layouts"].items())
    name = ", ".join(machine["device_names"]) or machine["device"]
    hosts = f" on {', '.join(machine['hosts'])}" if machine["hosts"] else ""
    places = dict.fromkeys(say(attempt["placement"]) for attempt in report["attempts"])
    facts = [
        f"Work: {work['model.name']}, {label('size_px', **work)}, {label('work_steps', **work)}, "
        f"{work['precision']}, attention {work['attention']}",
        f"Ranks: {machine['ranks']}{hosts}, each on {md_text(name)}{threads}",
        f"Layout: {layouts}; engine {report['engine']}",
        *([f"Weights: {', then '.join(md_text(place) for place in places)}"] if places else []),
        *_wait(report["wait"]),
        f"Made by opensora_launch {report['version']}" + _versions(report["environment"]),
    ]
    blocks.append("\n".join(f"- {fact}" for fact in facts))
    return blocks


def _wait(wait: Mapping[str, Any] | None) -> list[str]:
    """One line about the user's wait, if it is known."""
    if wait is None:
        return []
    parts = ", ".join(f"{label('wait_' + part)} {secs(seconds)} s" for part, seconds in wait["parts"].items())
    return [f"{label('wait_title')}: {secs(wait['total_s'])} s: {parts}"]


def _approximate(report: Mapping[str, Any]) -> str:
    return label("approximate", settings=report["approximate"])


def _versions(environment: Mapping[str, Any]) -> str:
    """Versions that decide speed and whether the run can be repeated, each after a comma."""
    versions = environment["versions"]
    found = [f"{name} {versions[name]}" for name in ("python", "torch", "cuda", "nccl") if name in versions]
    found += [f"driver {', '.join(environment['drivers'])}"] if environment["drivers"] else []
    found += [f"environment {environment['profile']}"] if environment["profile"] else []
    return "".join(f", {md_text(word)}" for word in found)


def _used(report: Mapping[str, Any]) -> list[str]:
    found = report["efficiency"]
    blocks = ["## How well the ranks were used"]
    if found is None:
        return [*blocks, f"{label('no_efficiency')}. {md_text(say(report['efficiency_reason']))}"]
    body = []
    for scope, name in SCOPES.items():
        s = found[scope]
        base = f"{secs(s['t_base_s'])} s on {s['gpus_base']}"
        body.append([name, base, f"{secs(s['t_s'])} s on {s['gpus']}", f"{s['speedup']:.2f}", f"{s['efficiency']:.1%}"])
    base = found["baseline"]
    blocks.append(md_table(["time of", f"baseline ({base['kind']})", "this run", "speed-up", "efficiency"], body))
    blocks.append(md_text(label("baseline", kind=base["kind"], how=base["how"])))
    return blocks + ([f"**{label('fault')}: {say(found['fault'])}**"] if found["fault"] else []) + _rates(report)


def _found(report: Mapping[str, Any]) -> list[str]:
    """Findings of all attempts, and advice."""
    blocks = [f"## {label('found')}", md_list([_finding(found) for found in _findings(report)]) or label("found_none")]
    if report["advice"]:
        return [*blocks, f"## {label('advice')}", md_list([_advice_text(advice) for advice in report["advice"]])]
    none = label("advice_none") if report["prediction"] else label("advice_unknown", why=report["prediction_reason"])
    return [*blocks, f"## {label('advice')}", md_text(none)]


def _findings(report: Mapping[str, Any]) -> list[Message]:
    return [found for attempt in report["attempts"] for found in attempt["findings"]]


def _finding(found: Message) -> str:
    return f"{say(found, 'title')}. {say(found)}"


def _rates(report: Mapping[str, Any]) -> list[str]:
    """FLOP/s, energy, cost and serial share, as far as they are known."""
    lines = []
    if (rates := report["rates"]) and rates["flops_per_s"]:
        share = f", {rates['mfu']:.1%} of the card's peak" if rates["mfu"] is not None else ""
        lines.append(f"A rank computed {rates['flops_per_s'] / 1e12:.3g} TFLOP/s over its denoise phases{share}.")
    if report["energy"] and report["energy"]["joules_per_video"] is not None:
        lines.append(f"The GPUs used {report['energy']['joules_per_video'] / 1000:.3g} kJ per video.")
    lines += [f"{used[0].upper()}{used[1:]}."] if (used := used_text(report)) else []
    if report["serial_share"] and (share_of := report["serial_share"]["job"]) is not None:
        lines.append(f"{label('serial')} by Karp and Flatt: {karp_flatt_text(share_of)}.")
    return [" ".join(lines)] if lines else []


def _attempt(attempt: Mapping[str, Any], *, alone: bool) -> list[str]:
    title = "## Where the time went" + ("" if alone else f": attempt {attempt['attempt']}, {attempt['status']}")
    blocks = [title]
    if failure := attempt["failure"]:
        place = "".join(f", {k} {failure[k]}" for k in ("phase", "step", "collective") if failure[k] is not None)
        who = "failed_on" if failure["rank"] >= 0 else "ranks_failed_on"
        blocks.append(f"{label(who, rank=failure['rank'], host=failure['host'])}, {failure['kind']}{place}:")
        blocks.append("\n".join(f"    {line}" for line in failure["message"].splitlines()))
        log = f"rank{failure['rank']}" if failure["rank"] >= 0 else "torchrun"
        blocks.append(f"Log: attempts/{attempt['attempt']}/logs/{log}.log")
    ranks = attempt["ranks"]
    if not ranks:
        return [*blocks, say(message("no_events"))]
    blocks.append(_by_rank(ranks))
    if kinds := _total(r["compute_by_kind"] for r in ranks):
        blocks.append(f"Compute of all ranks by kind: {_seconds(kinds)}.")
    if axes := _total(r["communication_by_axis"] for r in ranks):
        blocks.append(f"Communication of all ranks by axis: {_seconds(axes)}.")
    if (previews_s := sum(r["previews_s"] for r in ranks)) > 0:
        blocks.append(label("previews_about", seconds=previews_s))
    blocks += _steps(attempt["steps"])
    return [*blocks, *_slowest(attempt), *machines(attempt)]


def _by_rank(ranks: Sequence[Mapping[str, Any]]) -> str:
    """Seconds and percent of the rank's own wall time; parts that no rank has are left out."""
    sums = _total(r["parts"] for r in ranks)
    parts = [part for part in WALL_PARTS if sums[part] > 0]
    body = [
        [f"{r['rank']}{'' if r['complete'] else ' (cut off)'}", secs(r["wall_s"])]
        + [secs_of(r["parts"][part], r["wall_s"]) for part in parts]
        + [gib(r["peak_memory_bytes"])]
        for r in ranks
    ]
    if len(ranks) > 1:
        total = sum(r["wall_s"] for r in ranks)
        body.append(["all", secs(total), *(secs_of(sums[part], total) for part in parts), ""])
    return md_table(["rank", "wall s", *(f"{part} s" for part in parts), "peak GiB"], body)


def _steps(steps: Sequence[Mapping[str, Any]]) -> list[str]:
    body = [
        [str(s["rows"]), s["layout"], str(s["count"]), f"{s['median_s']:.3f}", f"{s['min_s']:.3f} to {s['max_s']:.3f}"]
        for s in steps
    ]
    return [md_table(["rows per step", "layout", "steps", "median s", "range s"], body, (0, 1))] if body else []


def _slowest(attempt: Mapping[str, Any]) -> list[str]:
    """The rank that was waited for most, and what it was in meanwhile."""
    if not attempt["waited_for"]:
        return []
    most = attempt["waited_for"][0]
    while_in = _seconds({k: v for k, v in most["while_in"].items() if v >= LEAST_WAIT * most["seconds"]})
    who = f"{'ranks' if len(most['by']) > 1 else 'rank'} {', '.join(most['by'])}"
    return [
        f"Longest wait: {who} waited {secs(most['seconds'])} s for rank {most['rank']} on {most['host']}, "
        f"which meanwhile was in: {while_in}."
    ]


def _samples(report: Mapping[str, Any]) -> list[str]:
    body = []
    for s in report["samples"]:
        files = ", ".join(f"[{f}]({f})" for f in s["files"]) or f"{s['name']}: {md_text(s['failure'] or 'not made')}"
        prompt = " ".join(s["prompt"].split())
        shown = prompt if len(prompt) <= PROMPT_CHARS else prompt[: PROMPT_CHARS - 1] + "…"
        body.append([files, str(s["seed"]), md_text(shown)])
    title = label("samples" if report["work"]["num_frames"] > 1 else "sample_images")
    return [f"## {title}", md_table(["file", "seed", "prompt"], body, (0, 2))] if body else []


def _all_unknown(report: Mapping[str, Any]) -> list[str]:
    several = len(report["attempts"]) > 1
    found = [say(line) for line in report["unknown"]]
    for attempt in report["attempts"]:
        start = f"Attempt {attempt['attempt']}: " if several else ""
        found += [start + say(line) for line in attempt["unknown"]]
    return found


def _total(dicts: Iterable[Mapping[str, float]]) -> dict[str, float]:
    total: dict[str, float] = {}
    for found in dicts:
        for name, seconds in found.items():
            total[name] = total.get(name, 0.0) + seconds
    return total


def _seconds(parts: Mapping[str, float]) -> str:
    return ", ".join(f"{name.replace('_', ' ')} {secs(seconds)} s" for name, seconds in parts.items())


def _count(number: int, noun: str) -> str:
    return f"{number} {noun}{'' if number == 1 else 's'}"
