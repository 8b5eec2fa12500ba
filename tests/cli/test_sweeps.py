"""Points of a sweep that differ only in what each video has for itself are one run; others are runs of their own."""

import json
from pathlib import Path

import pytest

from opensora_launch.cli import generate, main
from opensora_launch.errors import UserError
from opensora_launch.plan.plan import Machine
from opensora_launch.request import prepare as jobs
from opensora_launch.request.flags import GENERATE_FLAGS, parse
from opensora_launch.request.prepare import PlannedRun, prepare_runs

ONE_RANK = Machine(device="cpu", nodes=1, gpus_per_node=1, cpus_per_node=1)


def jobs_of(*words: str) -> tuple[PlannedRun, ...]:
    argv = ["--prompt", "sea", "--prompt", "raining, sea", "-m", "model=tiny", *words]
    return prepare_runs(parse("generate", GENERATE_FLAGS, argv), ONE_RANK).runs


def test_seeds_steps_and_guidance_share_one_run() -> None:
    (job,) = jobs_of("sampling.seed=1,2", "sampling.num_steps=3,4", "sampling.guidance=range(2,4)")
    videos = job.plan.videos
    assert len(videos) == 2 * 2 * 2 * 2
    assert [v.name for v in videos] == [f"{i:04d}_0" for i in range(16)]
    assert [v.prompt for v in videos[:4]] == ["sea", "raining, sea", "sea", "raining, sea"]
    found = [(v.seed, v.guidance.num_steps, v.guidance.text_scale) for v in videos[::2]]
    assert found == [(s, n, g) for s in (1, 2) for n in (3, 4) for g in (2.0, 3.0)]


def test_each_line_of_prompts_says_its_point_and_what_the_sweep_chose() -> None:
    (job,) = jobs_of("sampling.seed=1,2")
    lines = [(p["index"], p["text"], p["point"], p["overrides"], p["videos"]) for p in job.record.prompts]
    assert lines == [
        (0, "sea", 0, ["sampling.seed=1"], ["0000_0"]),
        (1, "raining, sea", 0, ["sampling.seed=1"], ["0001_0"]),
        (2, "sea", 1, ["sampling.seed=2"], ["0002_0"]),
        (3, "raining, sea", 1, ["sampling.seed=2"], ["0003_0"]),
    ]
    assert json.dumps(job.record.argv) == '["model=tiny", "sampling.seed=1"]'


@pytest.mark.parametrize(
    ("sweep", "said"),
    [
        (["sampling.guidance=interval(1,2)"], "is every number between two: name some"),
        (["sampling.seed=range(1,1000000000)"], "holds 999999999 values: a sweep has 1000 points at most"),
        (["sampling.seed=range(1,1e9,0.5)"], "a sweep has 1000 points at most"),
        (["sampling.seed=shuffle(range(1,1000000000))"], "a sweep has 1000 points at most"),
        (["sampling.seed=range(5,5)"], "holds no values"),
        (["sampling.seed=range(0,40)", "sampling.guidance=range(0,40)"], "this sweep has 1600 points"),
    ],
)
def test_sweeps_that_nobody_can_wait_for(sweep: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--prompt", "x", "-m", "model=tiny", *sweep]) == 2
    assert said in capsys.readouterr().err


def test_sizes_are_runs_of_their_own_and_gather_their_points() -> None:
    jobs = jobs_of("sampling.seed=1,2", "video.num_frames=5,9")
    assert [(job.plan.geometry.num_frames, len(job.plan.videos)) for job in jobs] == [(5, 4), (9, 4)]
    assert [number for number, _ in jobs[0].swept] == [0, 2]
    assert [number for number, _ in jobs[1].swept] == [1, 3]
    assert jobs[1].swept[0][1] == ("sampling.seed=1", "video.num_frames=9")


def test_groups_and_globs_can_be_swept() -> None:
    assert [job.run.launcher.kind.value for job in jobs_of("launcher=glob(*)")] == [
        "inline",
        "slurm",
        "srun",
        "torchrun",
    ]
    assert [job.plan.geometry.height_px for job in jobs_of("video=256px,tiny")] == [192, 64]


def test_a_sweep_of_one_point_is_a_run() -> None:
    (job,) = jobs_of()
    assert job.swept == ()
    assert "point" not in job.record.prompts[0]


def test_what_is_wrong_at_a_later_point_stops_all() -> None:
    with pytest.raises(UserError) as caught:
        jobs_of("sampling.seed=1,-1", "video.num_frames=17,18")
    text = str(caught.value)
    assert "sampling.seed=-1" in text
    assert "video.num_frames=18" in text


def test_a_sweep_runs_one_after_another_and_sums_up(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = iter([0, 1, 0])
    monkeypatch.setattr(generate, "start_run", lambda kind, plan, attempt, made, since_s: next(codes))
    argv = ["--prompt", "sea", "-m", "model=tiny", "topology=cpu1", "video.num_frames=5,9,13"]
    assert main(["generate", *argv]) == 1
    out = capsys.readouterr().out
    assert "run 2 of 3: video.num_frames=9" in out
    assert out.splitlines()[-1] == "3 runs: 2 done, failed: 2"
    assert len(list((empty_folder / "runs").iterdir())) == 3


def test_a_batch_job_that_stops_leaves_the_others_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    codes = iter([75, 0, 0])
    monkeypatch.setattr(jobs, "no_sbatch", lambda: [])
    monkeypatch.setattr(generate, "submit_run", lambda run, plan, attempt, made, since_s: next(codes))
    argv = ["--prompt", "sea", "-m", "model=tiny", "topology=cpu1", "launcher=slurm", "video.num_frames=5,9,13"]
    assert main(["generate", *argv]) == 75
    assert list(codes) == []


@pytest.mark.parametrize(
    ("more", "said"),
    [
        ((), "3 runs: 2 submitted, failed: 2"),
        (("follow=true",), "3 runs: 2 done, failed: 2"),
        (("follow=true,false",), "6 runs: 3 done, 2 submitted, failed: 2"),
    ],
)
def test_what_is_only_submitted_is_not_done(
    more: tuple[str, ...], said: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = iter([0, 2, 0, 0, 0, 0])
    monkeypatch.setattr(jobs, "no_sbatch", lambda: [])
    monkeypatch.setattr(generate, "submit_run", lambda run, plan, attempt, made, since_s: next(codes))
    argv = ["--prompt", "sea", "-m", "model=tiny", "topology=cpu1", "launcher=slurm", "video.num_frames=5,9,13", *more]
    assert main(["generate", *argv]) == 2
    assert capsys.readouterr().out.splitlines()[-1] == said


@pytest.mark.parametrize("code", [130, 143, 75])
def test_what_ends_one_run_of_a_sweep_ends_the_sweep(
    code: int, empty_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    codes = iter([1, code, 0])
    monkeypatch.setattr(generate, "start_run", lambda kind, plan, attempt, made, since_s: next(codes))
    argv = ["--prompt", "sea", "-m", "model=tiny", "topology=cpu1", "video.num_frames=5,9,13"]
    assert main(["generate", *argv]) == code
    assert capsys.readouterr().out.splitlines()[-1] == "3 runs: 0 done, failed: 1, 2, not started: 1"
    assert next(codes) == 0, "the third was not started"
    assert len(list((empty_folder / "runs").iterdir())) == 2
