"""Runs that never ran: events of ranks whose every second is known, from a small simulation of waiting."""

import json
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from random import Random
from typing import Any

from opensora_launch.plan.layout import Layout
from opensora_launch.plan.make_plan import make_plan
from opensora_launch.plan.plan import Machine, Plan, VideoRequest
from opensora_launch.plan.rows import Guidance
from opensora_launch.report.accounting import WALL_PARTS
from opensora_launch.schema.config import RunConfig
from opensora_launch.telemetry.events import (
    Collective,
    End,
    Event,
    Meta,
    PhaseSpan,
    RankEvents,
    Step,
    record_line,
)
from tests.configs import changed
from tests.samples import finish_video
from tests.telemetry.lines import event_line

EPOCH_S = 1_700_000_000.0


@dataclass
class Simulation:
    """Ranks with a time each; `truth` is what the accounting must find."""

    world: int
    hosts: Sequence[str] = ()
    layouts: dict[str, str] = field(default_factory=dict)
    device_name: str = "a CPU"

    def __post_init__(self) -> None:
        self.hosts = self.hosts or ["host-a"] * self.world
        names = sorted(set(self.hosts))
        self.zero = {name: 5000.0 + 977.0 * n for n, name in enumerate(names)}  # each host's own clock
        self.now = [0.0] * self.world  # true seconds since the first rank's start
        self.start = [0.0] * self.world
        self.spans: list[list[PhaseSpan]] = [[] for _ in range(self.world)]
        self.steps: list[list[Step]] = [[] for _ in range(self.world)]
        self.collectives: list[list[Collective]] = [[] for _ in range(self.world)]
        self.counts: dict[tuple[int, ...], int] = defaultdict(int)
        self.truth = [dict.fromkeys(WALL_PARTS, 0.0) for _ in range(self.world)]
        self.by_axis: list[dict[str, float]] = [defaultdict(float) for _ in range(self.world)]
        self.waited: dict[tuple[int, int], float] = defaultdict(float)  # (rank, for rank)

    def clock(self, rank: int, now: float) -> float:
        return self.zero[self.hosts[rank]] + now

    def spend(self, rank: int, part: str, seconds: float) -> None:
        self.now[rank] += seconds
        self.truth[rank][part] += seconds

    def phase(self, rank: int, phase: str, begun: float, video: str | None = None) -> None:
        self.spans[rank].append(PhaseSpan(phase, self.clock(rank, begun), self.clock(rank, self.now[rank]), video))

    def meet(self, axis: str, ranks: tuple[int, ...], seconds: float, idle: Sequence[int] = ()) -> None:
        """A collective: all wait for the last, then all are in it for `seconds`. It is idle time on `idle` ranks."""
        begun = {r: self.now[r] for r in ranks}
        last = max(ranks, key=lambda r: begun[r])
        over = begun[last] + seconds
        self.counts[ranks] += 1
        for r in ranks:
            times = (self.clock(r, begun[r]), self.clock(r, over))
            self.collectives[r].append(Collective(axis, ranks, self.counts[ranks], 1000, *times))
            self.spend(r, "idle" if r in idle else "waiting", begun[last] - begun[r])
            self.spend(r, "idle" if r in idle else "communication", seconds)
            self.now[r] = over
            if r not in idle:
                self.by_axis[r][axis] += seconds
                self.waited[r, last] += begun[last] - begun[r]

    def step(self, video: str, step: int, rows: int, own: Sequence[int], layout: str, begun: Sequence[float]) -> None:
        for r in range(self.world):
            times = (self.clock(r, begun[r]), self.clock(r, self.now[r]))
            self.steps[r].append(Step(video, step, rows, own[r], layout, *times))

    def events(self, peak_bytes: int = 1 << 29, videos: tuple[str, ...] = ("0000_0",)) -> list[RankEvents]:
        return [
            RankEvents(
                meta=Meta(
                    rank=r,
                    world=self.world,
                    local_rank=r,
                    host=self.hosts[r],
                    device="cpu",
                    device_name=self.device_name,
                    threads=1,
                    start_s=self.clock(r, self.start[r]),
                    start_epoch_s=EPOCH_S + self.start[r],
                    layouts=self.layouts,
                ),
                spans=tuple(self.spans[r]),
                steps=tuple(self.steps[r]),
                collectives=tuple(self.collectives[r]),
                end=End(self.clock(r, self.now[r]), peak_bytes, videos),
            )
            for r in range(self.world)
        ]


def random_simulation(seed: int) -> Simulation:
    """Any layout of 1 to 8 ranks on 1 to 3 hosts, uneven ranks, steps of 1 to 3 rows, all phases."""
    draw = Random(seed)
    cfg, seq = draw.choice([(1, 1), (1, 2), (2, 1), (1, 3), (2, 2), (1, 5), (3, 2), (2, 4), (1, 8)])
    world = cfg * seq
    hosts = sorted(f"host-{draw.randrange(draw.choice([1, 1, 3]))}" for _ in range(world))
    sim = Simulation(world, hosts)
    everyone = tuple(range(world))
    text_begun = [0.0] * world
    for r in everyone:
        sim.start[r] = sim.now[r] = draw.uniform(0, 0.5) if r else 0.0
        for phase in ("setup", "load", "text"):
            sim.spend(r, "other", draw.choice([0.0, draw.uniform(0, 0.1)]))
            begun = sim.now[r]
            sim.spend(r, phase, draw.uniform(0, 2))
            text_begun[r] = begun
            if phase != "text":
                sim.phase(r, phase, begun)
    sim.meet("text", everyone, draw.uniform(0, 0.1))
    for r in everyone:
        sim.phase(r, "text", text_begun[r])
    for number in range(draw.randrange(1, 3)):
        _random_video(sim, draw, f"{number:04d}_0", (cfg, seq))
    sim.meet("barrier", everyone, 0.0)
    return sim


def _random_video(sim: Simulation, draw: Random, video: str, mesh: tuple[int, int]) -> None:
    cfg, seq = mesh
    groups = [tuple(range(c * seq, (c + 1) * seq)) for c in range(cfg)]
    denoise = list(sim.now)
    for r in range(sim.world):
        sim.spend(r, "other", draw.uniform(0, 0.05))
    for step in range(draw.randrange(1, 6)):
        rows = draw.randrange(1, 4)
        own = [sum(row % cfg == c for row in range(rows)) for c in range(cfg) for _ in range(seq)]
        idle = [r for r in range(sim.world) if own[r] == 0]
        begun = list(sim.now)
        for group in groups:
            for _ in range(draw.randrange(1, 4) if own[group[0]] else 0):
                for r in group:
                    sim.spend(r, "compute", draw.uniform(0, 0.2) * own[r])
                if seq > 1:
                    sim.meet(draw.choice(["ulysses", "ring"]), group, draw.uniform(0, 0.05))
        if cfg > 1:
            for n in range(seq):
                sim.meet("cfg", tuple(group[n] for group in groups), draw.uniform(0, 0.02), idle)
        sim.step(video, step, rows, own, f"dp1 cfg{cfg} ring1 ulysses{seq}", begun)
    for r in range(sim.world):
        sim.phase(r, "denoise", denoise[r], video)
        for phase in ("vae", "save") if r == 0 else ("vae",):
            begun_s = sim.now[r]
            sim.spend(r, phase, draw.uniform(0, 1))
            sim.phase(r, phase, begun_s, video)


def plain_simulation(world: int, *, slow: Sequence[float] | None = None, scale: float = 1.0) -> Simulation:
    """4 steps of 2 rows on cfg2, 1 step of 1 row, on whole seconds; `slow` stretches a rank's compute."""
    slow = slow or [1.0] * world
    sim = Simulation(world, layouts={"1": str(Layout(ulysses=world)), "2": str(Layout(ulysses=world))})
    everyone = tuple(range(world))
    for r in everyone:
        for phase, seconds in (("setup", 0.5), ("load", 2.0), ("text", 1.0 if r == 0 else 0.0)):
            begun = sim.now[r]
            sim.spend(r, phase, seconds)
            sim.phase(r, phase, begun)
    begun_all = list(sim.now)
    for step in range(5):
        rows = 2 if step < 4 else 1
        step_begun = list(sim.now)
        for r in everyone:
            sim.spend(r, "compute", 4.0 * rows * scale * slow[r] / world)
        if world > 1:
            sim.meet("ulysses", everyone, 0.25)
        sim.step("0000_0", step, rows, [rows] * world, sim.layouts["2"], step_begun)
    for r in everyone:
        sim.phase(r, "denoise", begun_all[r], "0000_0")
        for phase, seconds in (("vae", 3.0 / world), ("save", 0.5 if r == 0 else 0.0)):
            begun_s = sim.now[r]
            sim.spend(r, phase, seconds)
            sim.phase(r, phase, begun_s, "0000_0")
    return sim


def a_plan(world: int, *, prompts: Sequence[str] = ("raining, sea",), **changes: Any) -> Plan:
    run = changed(RunConfig(), **{"launcher__threads_per_rank": 1, "layout__ulysses": world} | changes)
    guidance = Guidance(run.sampling.num_steps, 7.5, 3.0, True, True, False)
    videos = [
        VideoRequest(f"{n:04d}_0", prompt, prompt, "", (), "t2v", 42, guidance) for n, prompt in enumerate(prompts)
    ]
    return make_plan(run, Machine("cpu", 1, world, 4), videos, "0.1.0")


def write_run(run: Path, plan: Plan, attempts: Sequence[Sequence[RankEvents]], *, done: Sequence[str] = ()) -> Path:
    """A run directory as the launcher and the worker leave it."""
    (run / "samples").mkdir(parents=True)
    text = json.dumps(asdict(plan))
    (run / "plan.json").write_text(text)
    (run / "overrides.json").write_text(json.dumps(["video=256px", "topology=cpu2"]))
    (run / "prompts.jsonl").write_text("".join(json.dumps({"text": video.prompt}) + "\n" for video in plan.videos))
    for number, events in enumerate(attempts):
        folder = run / "attempts" / str(number)
        (folder / "telemetry").mkdir(parents=True)
        (folder / "plan.json").write_text(text)
        (folder / "command.txt").write_text(f"OMP_NUM_THREADS=1 python -m opensora_launch.worker --attempt {number}\n")
        for e in events:
            write_events(folder / "telemetry" / f"rank{e.meta.rank}.jsonl", e)
    for name in done:
        finish_video(run, name)
    return run


def write_events(path: Path, events: RankEvents) -> None:
    recorded: tuple[Event, ...] = (*events.spans, *events.steps, *events.collectives)
    path.write_text(
        record_line(events.meta) + "".join(map(event_line, recorded)) + (record_line(events.end) if events.end else "")
    )
