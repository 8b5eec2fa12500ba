"""Names of videos by a template: safe on every file system, distinct, and the same in every slice of the list."""

import os
import unicodedata
from pathlib import Path

import pytest

from opensora_launch.cli import main
from opensora_launch.request.video_names import NAME_BYTES, Nameable, cut_to, safe_name, template_problems, video_names
from tests.request.test_prompts import written


def named(template: str, *names: str | None, samples: int = 1, prompt: str = "rain") -> list[str]:
    rows = list(enumerate(names))
    return video_names(template, [Nameable(i, s, name, prompt, 42 + s) for i, name in rows for s in range(samples)])


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("waves at dusk", "waves at dusk"),
        ("a cat's eye", "a cat's eye"),
        ('a/b\\c:d*e?f"g<h>i|j', "a_b_c_d_e_f_g_h_i_j"),
        ("../../etc/passwd", "_.._etc_passwd"),
        ("  ...hidden. . ", "hidden"),
        ("--prompt", "prompt"),
        ("two\nlines\twith\r\ntabs\x00\x7f", "two lines with tabs"),
        ("CON", "_CON"),
        ("nul.tar", "_nul.tar"),
        ("com1 .x", "_com1 .x"),
        ("LPT²", "_LPT²"),
        ("conan", "conan"),
        ("e\u0301te\u0301", "été"),
        ("붉은 원", "붉은 원"),
        (unicodedata.normalize("NFD", "붉은"), "붉은"),
        ("👩\u200d🚀 in space", "👩\u200d🚀 in space"),
        ("evil\u202egpj.exe", "evilgpj.exe"),
        ("zero\ufeffwidth", "zerowidth"),
        ("unassigned \U000e0fff", "unassigned _"),
        ("\u2028 line \u3000 ideographic", "line ideographic"),
        ("clip.sheet", "clip_sheet"),
        ("a.Sheet", "a_sheet"),
        ("...", ""),
        (" ", ""),
        ("", ""),
    ],
)
def test_a_text_becomes_a_name_for_every_file_system(text: str, name: str) -> None:
    assert safe_name(text) == name
    assert safe_name(name) == name


def test_a_name_is_cut_by_bytes_and_between_letters() -> None:
    assert safe_name("x" * 300) == "x" * NAME_BYTES
    assert safe_name("원" * 300) == "원" * (NAME_BYTES // 3)
    assert len(safe_name("con." + "x" * 300)) == NAME_BYTES
    assert cut_to("abe\u0301", 3) == "ab"
    assert cut_to("a👩\u200d🚀", 5) == "a"
    assert cut_to("a 👩", 3) == "a"
    assert cut_to("abc", 3) == "abc"


def test_without_a_template_videos_have_numbers() -> None:
    videos = [Nameable(index, sample, "x", "y", 1) for index in (0, 12345) for sample in (0, 10)]
    assert video_names(None, videos) == ["00000_00", "00000_10", "12345_00", "12345_10"]
    assert video_names("{index}_{sample}", videos) == video_names(None, videos)


def test_fields_and_their_formats() -> None:
    (name,) = named("{index}-{index:02}-{name:.3}-{prompt}-{seed}-{{x}}", "waves")
    assert name == "0000-00-wav-rain-42-{x}"


def test_samples_are_told_apart_and_a_prompt_without_a_name_has_its_number() -> None:
    assert named("{name}", "a", None, samples=2) == ["a_0", "a_1", "0001_0", "0001_1"]
    assert named("{name} {seed}", "a", samples=2) == ["a 42", "a 43"]


def test_the_end_of_a_long_name_stays() -> None:
    first, second = named("{prompt}_{sample}_{seed}", None, samples=2, prompt="원 " * 300)
    assert (first[-5:], second[-5:]) == ("_0_42", "_1_43")
    assert NAME_BYTES - 4 < len(first.encode()) <= NAME_BYTES


def test_equal_names_get_numbers() -> None:
    """Also those that differ in case only, or in how an accent is written, or before they are cut."""
    assert named("{name}", "a", "b", "A") == ["a_0000_0", "b", "A_0002_0"]
    assert named("{name}", "É", "e\u0301") == ["É_0000_0", "é_0001_0"]
    assert named("{name}", "a:b", "a/b", "straße", "STRASSE")[2:] == ["straße_0002_0", "STRASSE_0003_0"]
    long = named("{name}", "x" * 300, "x" * 301)
    assert len(set(long)) == 2
    assert [len(name) for name in long] == [NAME_BYTES] * 2


def test_a_number_at_the_end_does_not_make_a_new_twin() -> None:
    names = named("{name}", "a", "a", "a_0001_0", "...", "0003_0", "A_0000_0")
    assert len({name.casefold() for name in names}) == 6
    assert names[:3] == ["a_0000_0", "a_0001_0", "a_0001_0_0002_0"]


@pytest.mark.parametrize(
    ("template", "said"),
    [
        ("{nmae}", "there is no field {nmae}; the fields are {name}, {prompt}, {index}, {sample}, {seed}"),
        ("{}", "there is no field {}"),
        ("{prompt.x}", "there is no field {prompt.x}"),
        ("{prompt!r}", "there is no field {prompt!r}"),
        ("{prompt", "expected '}' before end of string; write a brace that is text twice"),
        ("a}", "Single '}' encountered"),
        ("out/{prompt}", "no file's name can hold /; --output DIR sets the folder"),
        ("{prompt:04d}", "{prompt:04d} is not possible"),
        ("{index:.3}", "{index:.3} is not possible"),
        ("{index:999999999}", "is not possible"),
        ("{index:{seed}}", "is not possible"),
        (" ", "--name is empty"),
    ],
)
def test_a_wrong_template_is_one_line(template: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    (line,) = template_problems(template)
    assert said in line
    assert main(["generate", "--prompt", "x", "--name", template, "model=tiny"]) == 2
    assert capsys.readouterr().err.splitlines() == ["error: this run cannot start:", f"  - {line}"]


def test_names_that_no_prompt_has_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--prompt", "x", "--name", "{name}", "model=tiny"]) == 2
    assert "--name {name}: no prompt has a name; prompt files may have a column 'name'" in capsys.readouterr().err


def test_rows_bring_their_names(empty_folder: Path) -> None:
    (empty_folder / "list.csv").write_text("text,name\nrain,Wet: #1\nsun,\nrain,wet_ #1\n")
    attempt, plan, lines = written(["--prompts", "list.csv", "--name", "{name}", "model=tiny"])
    assert [video.name for video in plan.videos] == ["Wet_ #1_0000_0", "0001", "wet_ #1_0002_0"]
    assert [line["videos"] for line in lines] == [["Wet_ #1_0000_0"], ["0001"], ["wet_ #1_0002_0"]]
    again = ["--prompts", str(attempt.parents[1] / "prompts.jsonl"), "--name", "{name}", "model=tiny"]
    assert written(again)[1].videos == plan.videos


def test_every_file_of_a_longest_name_can_be_written(tmp_path: Path) -> None:
    """With its suffix, and with what is added while it is written."""
    from opensora_launch.rundir import RunDir, create_once, write_whole

    run, name = RunDir(tmp_path), safe_name("원" * 300)
    for folder in (run.samples, run.failed, run.checkpoints, run.claims, run.previews / name):
        folder.mkdir(parents=True)
    for path in (run.record(name), run.sheet(name), run.failure(name), run.checkpoint(name)):
        write_whole(path, "x")
        assert path.read_text() == "x"
    assert create_once(run.claims / f"{name}.0.json", "x")
    assert sorted(os.listdir(run.samples)) == [run.record(name).name, run.sheet(name).name]


def test_a_long_name_is_short_in_a_dry_run(capsys: pytest.CaptureFixture[str]) -> None:
    """Its end tells it from its twin, and the plan stays aligned."""
    long = "a very long prompt about waves that break on a beach"
    words = ["generate", "--prompt", long, "--prompt", long, "--name", "{prompt}", "model=tiny", "dry_run=true"]
    assert main(words) == 0
    names = [line.split("  ")[2] for line in capsys.readouterr().out.splitlines() if f"'{long}'" in line]
    assert names == ["a very long p...h_0000_0", "a very long p...h_0001_0"]
