"""`--resume` makes what is missing, on other ranks if asked, and never other videos."""

import json
import socket
from dataclasses import replace
from pathlib import Path

import pytest
import yaml

from opensora_launch.cli import generate, main
from opensora_launch.errors import UserError
from opensora_launch.plan.plan import Machine, Plan
from opensora_launch.request import prepare
from opensora_launch.request.attempt import prepare_attempt
from opensora_launch.request.flags import GENERATE_FLAGS, parse
from opensora_launch.request.resume import prepare_resume
from opensora_launch.rundir import AttemptDir
from opensora_launch.telemetry.failure import Failure, record_failure
from opensora_launch.telemetry.heartbeat import Heartbeat
from tests.samples import finish_video

ONE_RANK = Machine(device="cpu", nodes=1, gpus_per_node=1, cpus_per_node=1)
THREE_RANKS = Machine(device="cpu", nodes=1, gpus_per_node=3, cpus_per_node=3)


@pytest.fixture
def run(empty_folder: Path) -> Path:
    """Three prompts with random seeds at two points of a sweep; the first, third and last are made."""
    argv = [word for text in ("a", "${b}", "c") for word in ("--prompt", text)]
    argv += ["--negative-prompt", "ugly, ${x}", "-m", "model=tiny", "topology=cpu2", "topology.gpus_per_node=3"]
    attempt = prepare_attempt([*argv, "sampling.seed=null", "sampling.num_steps=3,4"], THREE_RANKS).path
    for name in ("0000_0", "0002_0", "0005_0"):
        finish_video(attempt.parents[1], name)
    return attempt.parents[1]


@pytest.fixture
def started(monkeypatch: pytest.MonkeyPatch) -> list[tuple[str, Path]]:
    calls: list[tuple[str, Path]] = []

    def start(kind: object, plan: Plan, attempt: AttemptDir, made: object, since_s: float) -> int:
        calls.append((str(kind), attempt.path))
        return 0

    monkeypatch.setattr(generate, "start_run", start)
    return calls


def plan_of(folder: Path) -> Plan:
    return Plan.from_dict(json.loads((folder / "plan.json").read_text()))


def test_only_what_is_missing_with_the_same_seeds(run: Path, started: list[tuple[str, Path]]) -> None:
    assert main(["generate", "--resume", str(run)]) == 0
    ((_, attempt),) = started
    assert attempt == run / "attempts" / "1"
    whole = {video.name: video for video in plan_of(run).videos}
    assert plan_of(attempt).videos == tuple(whole[name] for name in ("0001_0", "0003_0", "0004_0"))
    assert plan_of(attempt).machine.ranks == 3
    assert (attempt / "command.txt").exists()


def test_a_run_of_a_version_that_knew_fewer_settings(run: Path, started: list[tuple[str, Path]]) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    del config["model"]["lora"], config["model"]["vae"]["kind"], config["model"]["trained_frames"]
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["generate", "--resume", str(run)]) == 0
    assert len(started) == 1


def test_on_other_ranks_and_by_another_launcher(run: Path, started: list[tuple[str, Path]]) -> None:
    assert main(["generate", "--resume", f"{run}/", "topology=cpu1", "launcher=inline", "sampling.batch_size=2"]) == 0
    ((kind, attempt),) = started
    assert kind == "inline"
    assert plan_of(attempt).machine.ranks == 1
    assert plan_of(attempt).sampling.batch_size == 2


def test_a_job_by_hand_gets_the_nodes_and_ranks_that_it_had(
    empty_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its script had them, not its config."""
    monkeypatch.setattr(prepare, "no_sbatch", lambda: [])
    attempt = prepare_attempt(["launcher=slurm", "--prompt", "x", "model=tiny"], replace(THREE_RANKS, nodes=2))

    def machine(*more: str) -> Machine:
        return prepare_resume(parse("generate", GENERATE_FLAGS, ["--resume", str(attempt.run), *more])).plan.machine

    same = machine()
    assert (same.device, same.nodes, same.gpus_per_node) == ("cpu", 2, 3)
    other = machine("topology=8gpu")
    assert (other.device, other.nodes, other.gpus_per_node) == ("cuda", 1, 8)
    with pytest.raises(UserError, match="number of ranks per node"):
        machine("topology.nodes=4")


def test_from_another_working_directory(
    run: Path,
    started: list[tuple[str, Path]],
    tmp_path_factory: pytest.TempPathFactory,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    assert main(["generate", "--resume", str(run)]) == 0
    assert len(started) == 1


def test_the_cards_of_another_machine_do_not_change_the_videos(run: Path, started: list[tuple[str, Path]]) -> None:
    config = yaml.safe_load((run / "config.yaml").read_text())
    config["hardware"] |= {"name": "h100_sxm", "memory_gb": 80.0}  # as a launcher writes it that finds such cards
    (run / "config.yaml").write_text(yaml.safe_dump(config))
    assert main(["generate", "--resume", str(run)]) == 0
    assert len(started) == 1


def test_folders_are_the_runs_own(
    run: Path, started: list[tuple[str, Path]], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever the working directory and the home have become, unless others are given."""
    was = yaml.safe_load((run / "config.yaml").read_text())
    monkeypatch.setenv("HOME", str(tmp_path / "another"))
    monkeypatch.chdir(tmp_path.parent)
    resumed = prepare_resume(parse("generate", GENERATE_FLAGS, ["--resume", str(run)]), THREE_RANKS)
    assert (resumed.run.model.folder, resumed.run.text_cache) == (was["model"]["folder"], was["text_cache"])
    assert Path(was["model"]["folder"]).is_absolute()
    argv = ["--resume", str(run), "model.folder=mine", "text_cache=null"]
    resumed = prepare_resume(parse("generate", GENERATE_FLAGS, argv), THREE_RANKS)
    assert (resumed.run.model.folder, resumed.run.text_cache) == (str(tmp_path.parent / "mine"), None)


def test_overrides_that_change_the_videos_are_refused(
    run: Path, started: list[tuple[str, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    argv = ["sampling.guidance=2", "video.num_frames=9", "precision=bf16", "topology=cpu1", "attention=sage2"]
    assert main(["generate", "--resume", str(run), *argv, "--prompt", "d"]) == 2
    said = capsys.readouterr().err
    assert "sampling.guidance=2.0 would change the videos (the run has 7.5)" in said
    assert "video.num_frames=9 would" in said
    assert "precision=bf16 would" in said
    assert "attention=sage2 would change the videos (the run has auto)" in said
    assert "topology" not in said.replace(str(run), "")
    assert "--prompt does not go with --resume" in said
    assert started == []
    assert not (run / "attempts" / "1").exists()


def test_nothing_missing_says_so(
    run: Path, started: list[tuple[str, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    for video in plan_of(run).videos:
        finish_video(run, video.name)
    assert main(["generate", "--resume", str(run)]) == 0
    assert capsys.readouterr().out == f"nothing is missing in {run}\n"
    assert started == []


def test_a_record_without_its_video_does_not_count(
    run: Path, started: list[tuple[str, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    """The file was deleted or emptied, or the record names none."""
    for video in plan_of(run).videos:
        finish_video(run, video.name)
    (run / "samples/0001_0.mp4").unlink()
    (run / "samples/0003_0.mp4").write_bytes(b"")
    (run / "samples/0004_0.json").write_text("{}")
    assert main(["status", str(run)]) == 0
    assert "videos: 3 of 6 done" in capsys.readouterr().out
    assert main(["generate", "--resume", str(run)]) == 0
    ((_, attempt),) = started
    assert [video.name for video in plan_of(attempt).videos] == ["0001_0", "0003_0", "0004_0"]


def test_a_run_that_is_still_being_made_is_left_alone(
    run: Path, started: list[tuple[str, Path]], capsys: pytest.CaptureFixture[str]
) -> None:
    beat = Heartbeat(run / "attempts" / "0" / "heartbeat" / "rank0.json", rank=0, host=socket.gethostname())
    beat.write(beat.beat(beat.now()))
    assert main(["generate", "--resume", str(run)]) == 2
    assert f"it is still running: rank 0 on {socket.gethostname()}" in capsys.readouterr().err
    beat.write(replace(beat.beat(beat.now()), started=1))  # its process has ended, and another has its id
    assert main(["generate", "--resume", str(run)]) == 0
    assert len(started) == 1


def test_a_dry_run_of_what_is_missing(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--resume", str(run), "dry_run=true"]) == 0
    assert "3 (3 t2v)" in capsys.readouterr().out
    assert not (run / "attempts" / "1").exists()


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("plan.json", "{", "Expecting property name"),
        ("plan.json", '{"a": 1}', "its schema is None, but this version of opensora-launch reads "),
        ("plan.json", '{"schema": 99}', "its schema is 99, but this version of opensora-launch reads "),
        ("plan.json", '{"schema": 1, "a": 1}', "Object missing required field `version`"),
        ("plan.json", '{"schema": 1, "version": 2}', "Expected `str`, got `int` - at `$.version`"),
        ("config.yaml", "a: [1,\nb: {", "while parsing a flow"),
        ("config.yaml", "- a", "it has no keys"),
        ("overrides.json", '{"a": 1}', "it is not a list of words"),
    ],
)
def test_a_damaged_run_is_told(name: str, text: str, said: str, run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (run / name).write_text(text)
    for words in (["generate", "--resume", str(run)], ["status", str(run)]):
        assert main(words) == 2
        (line,) = capsys.readouterr().err.splitlines()
        assert line.startswith(f"error: {run / name} cannot be read: {said}")


def test_the_config_of_a_run_is_shown(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    argv = ["generate", "--cfg", "job", "--resume", str(run), "sampling.batch_size=2"]
    assert main(argv) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert (config["sampling"]["num_steps"], config["topology"]["gpus_per_node"]) == (3, 3)
    assert (config["model"]["name"], config["sampling"]["batch_size"]) == ("tiny", 2)


def test_a_run_whose_ranks_have_said_their_last_is_free(run: Path, started: list[tuple[str, Path]]) -> None:
    """Though its heartbeats are fresh."""
    attempt = run / "attempts" / "0"
    beat = Heartbeat(attempt / "heartbeat" / "rank0.json", rank=0, host="elsewhere")
    beat.write(beat.beat(beat.now()))
    assert main(["generate", "--resume", str(run)]) == 2
    record_failure(AttemptDir(attempt), Failure(1, "elsewhere", "failure", "ValueError: no"))
    assert main(["generate", "--resume", str(run)]) == 0
    assert len(started) == 1


def test_ranks_started_by_hand_resume_too(run: Path) -> None:
    attempt = prepare_attempt(["--resume", str(run), "topology=cpu1"], ONE_RANK).path
    assert attempt == run / "attempts" / "1"
    assert [video.name for video in plan_of(attempt).videos] == ["0001_0", "0003_0", "0004_0"]


def test_ranks_started_by_hand_fit_what_is_asked(run: Path) -> None:
    with pytest.raises(UserError, match="topology asks for 3 ranks and 1 have been started: start 3, or leave"):
        prepare_attempt(["--resume", str(run)], ONE_RANK)
    gpus = Machine(device="cuda", nodes=1, gpus_per_node=1, cpus_per_node=1)
    assert plan_of(prepare_attempt(["--resume", str(run), "topology=cpu1"], gpus).path).machine.device == "cpu"
    with pytest.raises(UserError, match=r"topology\.device=cuda, but these ranks see no GPU"):
        prepare_attempt(["--resume", str(run), "topology=1gpu"], ONE_RANK)
