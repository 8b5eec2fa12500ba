"""Any text arrives byte for byte, and every prompt becomes the videos that its settings say."""

import json
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from opensora_launch.cli import main
from opensora_launch.plan.plan import Machine, Plan
from opensora_launch.request.attempt import prepare_attempt

ONE_RANK = Machine(device="cpu", nodes=1, gpus_per_node=1, cpus_per_node=1)
HOSTILE = [
    "raining, sea",
    "a cat's eye",
    'she said "no" \\" twice',
    "50% grey (foggy) [x] {y}",
    "été, 雨, 🌊, \u2028 and \x7f",
    "${oc.env:HOME} ${x} $(id) `id` \\${y}",
    "two\nlines\twith\r\ntabs",
    "--prompt",
    "-m",
    "a=b,c",
    "~x +y",
    "  spaces around  ",
]


def written(argv: list[str]) -> tuple[Path, Plan, list[dict[str, object]]]:
    """The attempt of a run, its plan, and the lines of its prompts.jsonl."""
    attempt = prepare_attempt(argv, ONE_RANK).path
    plan = Plan.from_dict(json.loads((attempt / "plan.json").read_text(encoding="utf-8")))
    text = (attempt.parents[1] / "prompts.jsonl").read_bytes().decode("utf-8")
    return attempt, plan, [json.loads(line) for line in text.split("\n")[:-1]]


def test_prompts_arrive_byte_for_byte() -> None:
    argv = [word for text in HOSTILE for word in ("--prompt", text)]
    _, plan, lines = written([*argv, "--negative-prompt", HOSTILE[5], "model=tiny"])
    assert [line["text"] for line in lines] == HOSTILE
    assert [video.prompt for video in plan.videos] == HOSTILE
    assert {video.negative for video in plan.videos} == {HOSTILE[5]}


def test_a_flag_may_hold_its_value_behind_an_equals_sign() -> None:
    _, plan, _ = written(["--prompt=a=b", "model=tiny"])
    assert [video.prompt for video in plan.videos] == ["a=b"]


def test_the_run_directory_is_complete_and_absolute(empty_folder: Path) -> None:
    folder = 'runs of "me", it\'s $HOME #1 é'
    attempt, plan, _ = written(
        ["--prompt", "x", "model=tiny", f'runs_dir="{folder.replace(chr(34), chr(92) + chr(34))}"']
    )
    run = attempt.parents[1]
    assert attempt.is_absolute()
    assert (attempt.name, run.parent) == ("0", empty_folder / folder)
    assert sorted(p.name for p in run.iterdir()) == sorted(
        ["attempts", "config.yaml", "overrides.json", "plan.json", "prompts.jsonl", "samples"]
    )
    assert sorted(p.name for p in attempt.iterdir()) == [
        "command.txt", "environment.json", "heartbeat", "logs", "plan.json", "telemetry", "waited.json",
    ]  # fmt: skip
    assert plan.machine == ONE_RANK
    assert json.loads((run / "overrides.json").read_text())[0] == "model=tiny"


def test_two_runs_in_one_second_have_two_folders() -> None:
    runs = {prepare_attempt(["--prompt", "x", "model=tiny"], ONE_RANK).path.parents[1] for _ in range(3)}
    assert len(runs) == 3


def test_settings_of_a_prompt_win_over_the_run(empty_folder: Path) -> None:
    (empty_folder / "list.csv").write_text(
        "text,seed,num_steps,guidance,num_samples,neg\nwaves,0,3,2.5,2,ugly\nsea,,,,,\n"
    )
    _, plan, lines = written(["--prompts", "list.csv", "model=tiny", "sampling.num_steps=7", "sampling.seed=9"])
    found = [(v.name, v.seed, v.guidance.num_steps, v.guidance.text_scale, v.negative) for v in plan.videos]
    assert found == [("0000_0", 0, 3, 2.5, "ugly"), ("0000_1", 1, 3, 2.5, "ugly"), ("0001_0", 9, 7, 7.5, "")]
    assert plan.videos[0].text == "waves. 24 FPS. 4 motion score."
    assert lines[0]["videos"] == ["0000_0", "0000_1"]
    assert lines[1]["source"] == "list.csv line 3"


def test_a_null_seed_is_drawn_once_a_prompt_and_recorded() -> None:
    _, plan, lines = written(
        ["--prompt", "a", "--prompt", "b", "model=tiny", "sampling.seed=null", "sampling.num_samples=2"]
    )
    seeds = [video.seed for video in plan.videos]
    assert seeds == [lines[0]["seed"], seeds[0] + 1, lines[1]["seed"], seeds[2] + 1]
    assert seeds[0] != seeds[2]


def test_names_sort_with_many_samples() -> None:
    _, plan, _ = written(["--prompt", "a", "model=tiny", "sampling.num_samples=11"])
    names = [video.name for video in plan.videos]
    assert names == sorted(names)
    assert (names[0], names[10]) == ("0000_00", "0000_10")


@pytest.mark.parametrize(("refs", "cond_type"), [(0, "t2v"), (1, "i2v_head"), (2, "i2v_loop")])
def test_references_choose_the_condition(empty_folder: Path, refs: int, cond_type: str) -> None:
    from PIL import Image

    paths = [str(empty_folder / f"{i}, it's.png") for i in range(refs)]
    for path in paths:
        Image.new("RGB", (32, 32)).save(path)
    flags = ["--ref", ";".join(paths)] if refs else []
    _, plan, _ = written(["--prompt", "a", *flags, "model=tiny"])
    (video,) = plan.videos
    assert (video.cond_type, video.refs) == (cond_type, tuple(paths))
    assert video.guidance.temporal_osci is (refs > 0)


def test_every_problem_is_said_at_once_and_nothing_written(
    empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (empty_folder / "list.csv").write_text("name,ref\nx,y\n")
    argv = ["generate", "--prompts", "list.csv", "--prompts", "gone.txt", "model=tiny", "video.num_frames=10"]
    argv += [
        "layout.cfg=7",
        "sampling.num_steps=0",
        "sampling.cond_type=i2v_haed",
        "sampling.guidance=nan",
        "launcher=inline",
        "topology=cpu2",
    ]
    assert main(argv) == 2
    said = capsys.readouterr().err
    parts = [
        "no column 'text'",
        "gone.txt",
        "video.num_frames=10",
        "num_steps=0",
        "i2v_haed",
        "guidance=nan",
        "launcher=inline",
    ]
    assert [part for part in parts if part not in said] == []
    assert not (empty_folder / "runs").exists()


def test_config_prompts_and_references_are_said_together(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--prompts", "gone.csv", "video=512px"]) == 2
    said = capsys.readouterr().err
    assert "video=512px" in said
    assert "gone.csv: no such file" in said
    assert main(["generate", "--prompt", "x", "--ref", "cat.png", "model=tiny", "video.num_frames=6"]) == 2
    said = capsys.readouterr().err
    assert "cat.png: no such file" in said
    assert "video.num_frames=6" in said


def test_a_wrong_prompt_file_does_not_hide_a_missing_reference(
    empty_folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nor does an override that there is not, or a kernel of another device; nothing is written."""
    words = ["generate", "--prompt", "x", "--ref", "cat.png", "--prompts", "gone.csv", "model=tiny"]
    for more, said in (
        (["attention=flash3", "topology=cpu2"], "attention=flash3 cannot be used: it needs a GPU; use attention=auto"),
        (["sampling.cond_type=i2v"], "cond_type=i2v is not known; did you mean i2v_head, i2v_tail or i2v_loop?"),
        (["sampling.num_stepz=3"], "did you mean sampling.num_steps?"),
    ):
        assert main([*words, *more]) == 2
        err = capsys.readouterr().err
        assert [part for part in ("cat.png: no such file", "gone.csv: no such file", said) if part not in err] == []
    assert list(empty_folder.iterdir()) == []


def test_the_layout_is_looked_at_whatever_else_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "--prompt", "x", "model=tiny", "topology=cpu4", "layout.ring=3", "video.num_frames=6"]
    assert main([*words, "sampling.num_steps=100000000", "sampling.num_samples=20000"]) == 2
    said = capsys.readouterr().err.splitlines()
    assert said == [
        "error: this run cannot start:",
        "  - sampling.num_steps=100000000 must be at most 10000",
        "  - sampling.num_samples=20000 must be at most 10000",
        "  - video.num_frames=6 must be 1 plus a multiple of 4; the nearest is 5",
        "  - layout.ring=3 needs 3 ranks or a multiple of them, but the topology has 4; "
        "change topology.gpus_per_node, or leave an axis out for the planner to choose",
    ]


def test_words_that_are_no_text_are_named(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--prompt", "x", "--negative-prompt", "a\udcff", "model=tiny", "runs_dir=\udcfe"]) == 2
    said = capsys.readouterr().err
    assert "'a\\udcff' is not valid UTF-8" in said
    assert "'runs_dir=\\udcfe' is not valid UTF-8" in said
    assert main(["generate", "--prompt", "x", "--ref", "", "model=tiny"]) == 2
    assert "--ref 1: the path is empty" in capsys.readouterr().err
    assert list(empty_folder.iterdir()) == []


def test_no_prompt_is_told_with_an_example(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "model=tiny"]) == 2
    assert '--prompt "raining, sea"' in capsys.readouterr().err


def test_missing_weights_are_named_with_the_command_that_downloads_them(capsys: pytest.CaptureFixture[str]) -> None:
    words = ["generate", "--prompt", "x", "model=open_sora_v2", "topology=cpu1", "model.folder='/no where/it\\'s'"]
    assert main(words) == 2
    said = capsys.readouterr().err
    assert "/no where/it's/Open_Sora_v2.safetensors, " in said
    (command,) = (line.partition("to download them: ")[2] for line in said.splitlines() if "are missing" in line)
    program, verb, repository, option, folder = shlex.split(command)
    assert (repository, folder) == ("hpcai-tech/Open-Sora-v2", "/no where/it's")
    installed = Path(sys.executable).with_name(program)
    done = subprocess.run([installed, verb, "--help"], capture_output=True, text=True, check=True)
    assert option in done.stdout


def test_ranks_started_by_hand_get_one_message_for_what_they_cannot_do() -> None:
    from opensora_launch.errors import UserError

    with pytest.raises(UserError, match="dry_run"):
        prepare_attempt(["--prompt", "x", "model=tiny", "dry_run=true"], ONE_RANK)
    with pytest.raises(UserError, match="this sweep is 2 runs"):
        prepare_attempt(["--prompt", "x", "-m", "model=tiny", "video.num_frames=5,9"], ONE_RANK)
