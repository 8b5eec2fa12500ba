"""Previews in the report: their cost is a part of its own, and the page shows the images."""

import json
import time
from dataclasses import asdict, replace
from pathlib import Path

import pytest
from PIL import Image

from opensora_launch.cli import main
from opensora_launch.report.wording import say
from opensora_launch.rundir import RunDir
from opensora_launch.telemetry.events import RankEvents, WorkSpan
from opensora_launch.telemetry.stall import Beat
from tests.cli.runs import made_run
from tests.report.browser import browser
from tests.report.checked import build
from tests.report.synthetic import Simulation, a_plan, write_run
from tests.telemetry.lines import event_line


def previewed(seconds: float) -> list[RankEvents]:
    """Ten steps on two ranks; after each, rank 0 makes a preview."""
    sim, spans = Simulation(2), []
    for step in range(10):
        begun = list(sim.now)
        for r in (0, 1):
            sim.spend(r, "compute", 1.0)
        sim.meet("ulysses", (0, 1), 0.0)
        sim.step("0000_0", step, 1, [1, 1], "dp1 cfg1 ring1 ulysses2 tp1", begun)
        at = sim.now[0]
        sim.spend(0, "other", seconds)
        spans.append(WorkSpan("preview", sim.clock(0, at), sim.clock(0, sim.now[0])))
    sim.meet("barrier", (0, 1), 0.0)
    for r in (0, 1):
        sim.phase(r, "denoise", 0.0, "0000_0")
    first, second = sim.events()
    return [replace(first, work=tuple(spans)), second]


def written(folder: Path, seconds: float) -> Path:
    events = previewed(seconds)
    run = write_run(folder / "run", a_plan(2), [events], done=["0000_0"])
    with (run / "attempts/0/telemetry/rank0.jsonl").open("a") as file:
        file.writelines(map(event_line, events[0].work))
    for step in (5, 10):
        path = RunDir(run).preview("0000_0", step)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (64, 16), "red").save(path)
    return run


def test_previews_are_a_loss_of_their_own(tmp_path: Path) -> None:
    report = build(written(tmp_path, 0.5))
    (attempt,) = report["attempts"]
    assert [rank["previews_s"] for rank in attempt["ranks"]] == [pytest.approx(5.0), 0.0]
    assert attempt["ranks"][0]["parts"]["other"] == pytest.approx(5.0)
    assert say(report["verdict"]["largest"]).startswith(("making previews: 5.0", "rank 0 made previews while rank 1"))
    assert [loss["seconds"] for loss in attempt["losses"][:2]] == pytest.approx([5.0, 5.0], rel=0.2)
    assert "Making them took 5.00 s" in (tmp_path / "run/report.md").read_text()
    assert report["previews"] == {"0000_0": ["previews/0000_0/step0005.png", "previews/0000_0/step0010.png"]}


def test_top_names_the_newest(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = written(tmp_path, 0.1)
    beats = RunDir(run).attempt(0).heartbeats
    beats.mkdir()
    beat = Beat(rank=0, host="h", pid=1, time_s=time.time(), state="done", phase="denoise")
    (beats / "rank0.json").write_text(json.dumps(asdict(beat)))
    assert main(["top", str(run), "--once"]) == 0
    assert capsys.readouterr().out.splitlines()[-1] == f"preview: {RunDir(run).preview('0000_0', 10)}"


@pytest.mark.browser
def test_the_page_shows_them(tmp_path: Path) -> None:
    run = written(tmp_path, 0.1)
    build(run)
    made_run(tmp_path, "none", 1)
    with browser(tmp_path) as page:
        page.open(run / "report.html")
        page.run("document.querySelector('#previews').scrollIntoView()")
        shown = "[...document.querySelectorAll('#previews img')].map((e) => e.alt)"
        assert page.run(shown) == ["0000_0 after step 5", "0000_0 after step 10"]
        page.open(tmp_path / "none/report.html")
        assert page.run("document.querySelector('#previews')") is None
        assert page.errors == []
