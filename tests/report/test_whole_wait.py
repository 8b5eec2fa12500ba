"""The user's wait, from the command line to the report: it adds up, in the report, on the page and in the terminal."""

import json
import time
from pathlib import Path

import pytest

from opensora_launch.report.accounting import account
from opensora_launch.report.whole_wait import job_phases
from opensora_launch.rundir import RunDir
from opensora_launch.runs.waited import Waited, read_waited, record_job_start, record_waited
from tests.report.checked import build
from tests.report.synthetic import EPOCH_S, a_plan, plain_simulation, random_simulation, write_run

WORK_S = 24.75  # of the plain simulation on two ranks


def a_run(folder: Path, attempts: int = 1) -> RunDir:
    events = [plain_simulation(2).events() for _ in range(attempts)]
    return RunDir(write_run(folder, a_plan(2), events, done=["0000_0"]))


def test_the_parts_of_the_wait(tmp_path: Path) -> None:
    """Start, the phases that most ranks were in, and the end; the last is unknown where nobody waited for a report."""
    run = a_run(tmp_path / "run")
    record_waited(run.attempt(0), Waited(EPOCH_S - 31.0, EPOCH_S - 30.0, done_epoch_s=EPOCH_S + WORK_S + 8.0))
    report = build(run.path)
    assert report["wait"]["total_s"] == pytest.approx(31 + WORK_S + 8, abs=1e-5)
    assert report["wait"]["parts"] == pytest.approx(
        {"start": 31.0, "setup": 0.5, "load": 2.0, "text": 1.0, "compile": 0.0, "image": 0.0, "denoise": 19.25,
         "vae": 1.5, "save": 0.5, "other": 0.0, "end": 8.0}, abs=1e-5
    )  # fmt: skip
    assert "The whole wait: 63.8 s: start 31.0 s, setup 0.50 s, load 2.00 s" in run.report_markdown.read_text()
    assert "recording_starts_late" not in {found["code"] for found in report["unknown"]}
    record_waited(run.attempt(0), Waited(EPOCH_S - 31.0, EPOCH_S - 30.0))
    assert "end" not in build(run.path)["wait"]["parts"]


def test_the_queue_of_slurm_is_a_part(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    record_waited(run.attempt(0), Waited(EPOCH_S - 700.0, EPOCH_S - 20.0, submitted_epoch_s=EPOCH_S - 690.0))
    parts = build(run.path)["wait"]["parts"]
    assert (parts["queue"], parts["start"]) == (pytest.approx(670.0), pytest.approx(30.0))


def test_attempts_of_one_command(tmp_path: Path) -> None:
    """One that followed another adds what the earlier took. Tasks side by side have no common wait."""
    run = a_run(tmp_path / "run", attempts=2)
    record_waited(run.attempt(0), Waited(EPOCH_S - 131.0, EPOCH_S - 130.0))
    record_waited(run.attempt(1), Waited(EPOCH_S - 131.0, EPOCH_S - 30.0))
    assert build(run.path)["wait"] is None  # the first one ended after this one had begun
    first = run.attempt(0).events(0)
    for path in run.attempt(0).all_events():
        path.write_text(path.read_text().replace(f"{EPOCH_S}", f"{EPOCH_S - 100.0}"))
    assert first.exists()
    parts = build(run.path)["wait"]["parts"]
    assert (parts["earlier"], parts["start"]) == (pytest.approx(100.0), pytest.approx(31.0))


def test_a_run_whose_wait_was_not_recorded(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run")
    report = build(run.path)
    assert report["wait"] is None
    assert "recording_starts_late" in {found["code"] for found in report["unknown"]}
    run.attempt(0).waited.write_text("{")
    assert build(run.path)["wait"] is None


def test_the_report_that_the_user_waits_for_ends_the_wait(tmp_path: Path) -> None:
    """A report that is made again later does not change it."""
    run = a_run(tmp_path / "run")
    record_waited(run.attempt(0), Waited(EPOCH_S - 31.0, EPOCH_S - 30.0))
    first = build(run.path, waiting=True)["wait"]
    waited = read_waited(run.attempt(0))
    assert waited is not None
    assert waited.done_epoch_s is not None
    assert EPOCH_S < waited.done_epoch_s <= time.time()
    assert first["total_s"] == pytest.approx(waited.done_epoch_s - EPOCH_S + 31.0, abs=1e-3)
    assert build(run.path)["wait"] == first
    page = run.report_page.read_text()
    assert json.dumps(first["total_s"]) in page


def test_a_job_records_its_start(tmp_path: Path) -> None:
    run = a_run(tmp_path / "run", attempts=2)
    before = time.time()
    record_waited(run.attempt(0), Waited(1.0, submitted_epoch_s=2.0))
    record_job_start(run.attempt(0), run.attempt(1))
    copied = read_waited(run.attempt(1))
    assert copied is not None
    assert copied.begun_epoch_s is not None
    assert (copied.asked_epoch_s, copied.submitted_epoch_s, copied.begun_epoch_s >= before) == (1.0, 2.0, True)
    record_job_start(run.attempt(0), run.attempt(0))
    assert read_waited(run.attempt(0)) is not None


@pytest.mark.parametrize("seed", range(10))
def test_phases_add_up_to_the_wall_time(seed: int) -> None:
    events = random_simulation(seed).events()
    accounts = account(events)
    assert sum(job_phases(events, accounts).values()) == pytest.approx(accounts.wall_s, rel=1e-9)
