"""Why a scaling curve bends: sweeps of simulated runs, in which one thing grows with the ranks."""

from pathlib import Path
from typing import Any

import pytest

from opensora_launch.cli import main
from opensora_launch.report.bench_report import report_sweep
from opensora_launch.report.build import build_report
from opensora_launch.report.wording import say
from opensora_launch.rundir import SweepDir
from opensora_launch.runs.sweep_state import BenchPoint, FinishedRun, Sweep
from tests.report.browser import browser
from tests.report.sweeps import read_sweep_report
from tests.report.synthetic import Simulation, a_plan, write_run

COUNTS = (1, 2, 4, 8)


def scaled(ranks: int, *, exchange: float = 0.0, vae: float = 0.0, load: float = 0.0) -> Simulation:
    """Ten steps of 8 seconds shared out, an exchange of so many seconds for each rank, the VAE on rank 0 alone."""
    sim, everyone = Simulation(ranks), tuple(range(ranks))
    for r in everyone:
        sim.spend(r, "load", load)
        sim.phase(r, "load", 0.0)
    begun_all = list(sim.now)
    for step in range(10):
        begun = list(sim.now)
        for r in everyone:
            sim.spend(r, "compute", 8.0 / ranks)
        if ranks > 1:
            sim.meet("ulysses", everyone, exchange * ranks)
        sim.step("0000_0", step, 1, [1] * ranks, f"dp1 cfg1 ring1 ulysses{ranks} tp1", begun)
    for r in everyone:
        sim.phase(r, "denoise", begun_all[r], "0000_0")
    begun = list(sim.now)
    sim.spend(0, "vae", vae)
    sim.phase(0, "vae", begun[0], "0000_0")
    if ranks > 1:
        sim.meet("barrier", everyone, 0.0)
    return sim


def sweep_of(folder: Path, *, busy: float = 0.0, **sizes: float) -> tuple[SweepDir, Sweep]:
    points = tuple(BenchPoint("video=256px layout.ring=1", 1, n, (), "cpu") for n in COUNTS)
    done = []
    for place, ranks in enumerate(COUNTS):
        run = write_run(
            folder / f"20261129-19010{place}", a_plan(ranks), [scaled(ranks, **sizes).events()], done=["0000_0"]
        )
        build_report(run)
        done += [FinishedRun(place, 1, run.name, busy), FinishedRun(place, 2, run.name, busy)]
    sweep = Sweep(("--prompt", "x"), points, 2, 1, False, False, tuple(done))
    sweep.write(SweepDir(folder))
    return SweepDir(folder), sweep


def explained(folder: Path, **sizes: float) -> dict[str, Any]:
    report_sweep(*sweep_of(folder, **sizes))
    (found,) = read_sweep_report(folder)["explained"]
    one: dict[str, Any] = found
    return one


@pytest.mark.parametrize(
    ("sizes", "part", "cause"),
    [
        ({"exchange": 0.1}, "communication", "loss_exchange"),
        ({"vae": 12.0}, "waiting", "loss_wait"),
        ({"load": 9.0}, "load", None),
        ({"vae": 12.0, "exchange": 0.05}, "waiting", "loss_wait"),
        ({"vae": 4.0, "exchange": 0.1}, "communication", "loss_exchange"),
    ],
)
def test_what_grew_most_is_named(tmp_path: Path, sizes: dict[str, float], part: str, cause: str | None) -> None:
    found = explained(tmp_path / "bench", **sizes)
    why = found["why"]
    assert (why["code"], why["what"]["code"], (why["cause"] or {}).get("code")) == ("bends", part, cause)
    one, most = found["bars"][0], found["bars"][-1]
    whole_s = 8 * sum(most["parts"].values())
    assert why["efficiency"] == pytest.approx(sum(one["parts"].values()) / whole_s, abs=1e-4)
    assert why["share"] == pytest.approx((8 * most["parts"][part] - one["parts"][part]) / whole_s, abs=1e-4)


def test_a_line_that_scales_well_and_one_where_more_ranks_are_hardly_used(tmp_path: Path) -> None:
    good = explained(tmp_path / "good")
    assert (good["why"]["code"], good["advice"]) == ("scales_well", [])
    (first, *_) = explained(tmp_path / "bad", vae=60.0)["advice"]
    assert say(first["what"]) == "With 8 CPU ranks, each does 57% of what it does with 4 CPU ranks."
    assert say(first["do"]) == "Use 4 CPU ranks, unless the time matters more than the cost."


def test_what_is_read_first_comes_first_everywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder, _ = sweep_of(tmp_path / "bench", busy=0.5, vae=12.0)
    assert main(["report", str(folder)]) == 0
    out = " ".join(capsys.readouterr().out.split())
    busy = "The machine was not idle before 8 of 8 runs: other programs used up to 50% of its CPUs."
    why = (
        "From 1 CPU rank to 8 CPU ranks the efficiency falls to 52%. What grew most is waiting, by 48% of all ranks' "
        "time: rank 0 ran the VAE while others waited (48%)."
    )
    assert f"{busy} video=256px layout.ring=1: {why} report: " in out
    head = (folder.path / "report.md").read_text().splitlines()[2:5:2]
    assert head[0] == f"**{busy}**"
    assert why in head[1]


@pytest.mark.browser
def test_the_page_shows_phases_by_count_and_its_tables_whole(tmp_path: Path) -> None:
    folder, _ = sweep_of(tmp_path / "bench", busy=0.5, vae=12.0)
    assert main(["report", str(folder)]) == 0
    with browser(tmp_path) as page:
        for language in ("en", "ko"):
            page.open(folder.report_page, width=1024, language=language)
            scrolled = "[...document.querySelectorAll('.scroll')].filter((e) => e.scrollWidth > e.clientWidth).length"
            assert page.run(scrolled) == 0
            assert page.run("document.querySelector('main').firstElementChild.className") == "note warn"
            assert page.run("document.querySelectorAll('#where svg rect').length") == 1 * 2 + 3 * 3
        page.run("document.querySelectorAll('#where button')[1].click()")
        ends = "[...document.querySelectorAll('#where svg text.soft')].map((e) => Math.round(+e.getAttribute('x')))"
        assert len(set(page.run(ends))) == 1, "as shares, all bars are as long"
        assert page.errors == []
