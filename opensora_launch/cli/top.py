"""`opensora-launch top RUN`: what each rank does now, and its GPU. On a terminal a table that moves, else lines."""

import json
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from opensora_launch.cli.flags import Parsed
from opensora_launch.cli.progress import fraction
from opensora_launch.errors import UserError
from opensora_launch.launch.run_state import AttemptState, is_alive, launcher_alive, read_attempts, state_of
from opensora_launch.launch.slurm_query import NoAnswer, job_states
from opensora_launch.telemetry.samples import NodeSamples, read_samples
from opensora_launch.telemetry.stall import Beat
from opensora_launch.telemetry.typed import is_number

LOOK_S = 1.0
LINE_EVERY_S = 30.0
LEAST_SHARE = 0.02  # done, before the rest is guessed
HOME = "\x1b[H\x1b[2J"  # and clear


def top(parsed: Parsed) -> int:
    """Watch the newest attempt of a run until nobody works on it any more; the exit code."""
    if len(parsed.rest) != 1:
        raise UserError(f"top takes one run's folder, not {len(parsed.rest)}: opensora-launch top runs/STAMP")
    run_dir = Path(parsed.rest[0])
    if not read_attempts(run_dir):
        raise UserError(f"{run_dir} is not a run's folder: it has no attempts")
    live = sys.stdout.isatty()
    last_s = float("-inf")
    while True:
        attempt = read_attempts(run_dir)[-1]
        ended = is_over(attempt)
        now = time.monotonic()
        if live or ended or now - last_s >= LINE_EVERY_S:
            lines = rank_lines(attempt.folder, attempt.beats, time.time())
            print((HOME if live else "") + "\n".join(lines), flush=True)
            last_s = now
        if ended or parsed.has("--once"):
            return 0
        time.sleep(LOOK_S)


def is_over(attempt: AttemptState) -> bool:
    """No rank is alive, as `status` tells it, and none will be: the launcher has ended, or the job is over."""
    if attempt.failure is None and any(is_alive(beat) for beat in attempt.beats):
        return False
    launched = attempt.launched
    if launched is None:
        return bool(attempt.beats)
    if launched.job:
        try:
            states = job_states(launched.job)
        except NoAnswer:
            states = []
        return all(state.over for state in states) if states else bool(attempt.beats)
    alive = launcher_alive(launched)
    return not alive if alive is not None else bool(attempt.beats)


def rank_lines(attempt: Path, beats: Sequence[Beat], now: float) -> list[str]:
    """A line for the run and one for each rank."""
    if not beats:
        return ["no rank has given a sign of life"]
    nodes = [n for p in (attempt / "telemetry").glob("node-*.jsonl") if (n := read_samples(p)) and n.samples]
    metas = {m["rank"]: m for p in (attempt / "telemetry").glob("rank*.jsonl") if (m := _meta(p))}
    started = min((m["start_epoch_s"] for m in metas.values()), default=now)
    head = ["rank", "host", "doing", "step", "use", "memory", "power", "stuck since"]
    rows = [head, *(_row(b, nodes, metas.get(b.rank), now) for b in beats)]
    widths = [max(len(row[n]) for row in rows) for n in range(len(head))]
    lines = ["  ".join(cell.ljust(w) for cell, w in zip(row, widths, strict=True)).rstrip() for row in rows]
    return [summary(beats, now - started), *lines]


def summary(beats: Sequence[Beat], passed_s: float) -> str:
    """Videos, and when they will be done if the rest takes as long as what is behind."""
    lost, failed = sum(state_of(b) == "lost" for b in beats), sum(b.state == "failed" for b in beats)
    running = sum(state_of(b) == "running" for b in beats)
    ends = [f"{count} of them {how}" for count, how in ((failed, "failed"), (lost, "lost without a word")) if count]
    if not running:
        return ", ".join([f"all {len(beats)} ranks have ended", *ends])
    done = [fraction(b) for b in beats]
    got, total = sum(d for d, _ in done), sum(t or 0.0 for _, t in done)
    share = got / total if total else 0.0
    eta = f", about {passed_s * (1 - share) / share:.0f} s to go" if share > LEAST_SHARE else ""
    at_work = ", ".join([f"{running} of {len(beats)} ranks at work", *ends])
    return f"{at_work}, {share:.0%} done after {passed_s:.0f} s{eta}"


def _row(beat: Beat, nodes: Sequence[NodeSamples], meta: Mapping[str, Any] | None, now: float) -> list[str]:
    node = next((n for n in nodes if n.host == beat.host), None)
    state = state_of(beat)
    doing = beat.phase if state == "running" else f"{state} in {beat.phase}" if state == "lost" else state
    stuck = state == "running" and beat.inside and now - beat.progress_s > 1
    waits = f"{now - beat.progress_s:.0f} s in {beat.collective}" if stuck else ""
    step = f"{beat.step + 1}/{beat.steps}" if beat.step is not None and beat.steps else ""
    use, memory, power = _machine(beat, node, meta)
    return [str(beat.rank), beat.host, f"{doing} {beat.video or ''}".strip(), step, use, memory, power, waits]


def _machine(beat: Beat, node: NodeSamples | None, meta: Mapping[str, Any] | None) -> tuple[str, str, str]:
    """Of the rank's GPU, or of its process where it has none."""
    if node is None:
        return "", "", ""
    sample = node.samples[-1]
    place = next((n for n, g in enumerate(node.gpus) if meta and g["uuid"] == meta.get("device_uuid")), None)
    if place is not None and place < len(sample["gpus"]):
        gpu: Mapping[str, Any] = sample["gpus"][place]
        power = f"{gpu['power_w']:.0f} W" if "power_w" in gpu else ""
        return _percent(gpu.get("util")), _gib(gpu.get("memory_used_bytes")), power
    here = [(s["time_s"], r) for s in node.samples[-4:] for r in s["ranks"] if r["rank"] == beat.rank]
    if len(here) < 2:
        return "", "", ""
    (then, first), (last_s, last) = here[0], here[-1]
    known = last_s > then and "cpu_s" in last and "cpu_s" in first
    use = (last["cpu_s"] - first["cpu_s"]) / (last_s - then) if known else None
    return _percent(use), _gib(last.get("memory_bytes")), ""


def _meta(path: Path) -> Mapping[str, Any] | None:
    """The first line of a rank's events, if it is whole; the rest may be long."""
    try:
        with path.open(encoding="utf-8") as file:
            found: dict[str, Any] = json.loads(file.readline())
        return found if is_number(found["rank"]) and is_number(found["start_epoch_s"]) else None
    except (OSError, ValueError, KeyError, TypeError):
        return None


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.0%}"


def _gib(count: float | None) -> str:
    return "" if count is None else f"{count / 2**30:.1f} GiB"
