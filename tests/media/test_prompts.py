"""Prompts arrive byte for byte, and every mistake of every file is reported at once."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from opensora_launch.errors import Problems
from opensora_launch.media import prompts
from opensora_launch.media.prompts import (
    PromptEntry,
    PromptSettings,
    check_cond_type,
    check_motion_score,
    cond_type_of,
    with_suffixes,
)

REFERENCE = Path(__file__).parents[1] / "reference" / "prompts.json"
HOSTILE = [
    "raining, sea",
    "a cat's eye",
    '50% grey ("foggy")',
    "été ${oc.env:HOME}",
    "  two\nlines; a=b [c] {d}\t",
    "☔\u2028",
]


def problems_of(texts: list[str], files: list[Path], refs: list[str] | None = None) -> tuple[str, ...]:
    problems = Problems()
    prompts.read_prompts(texts, files, refs or [], problems)
    return tuple(problems.lines)


def read_prompts(texts: list[str], files: list[Path], refs: list[str]) -> tuple[PromptEntry, ...]:
    problems = Problems()
    entries = prompts.read_prompts(texts, files, refs, problems)
    assert problems.lines == []
    return entries


def written(path: Path, content: str | bytes) -> Path:
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_suffixes_equal_the_reference():
    cases = json.loads(REFERENCE.read_text())["cases"]
    assert len(cases) == 5
    for case in cases:
        assert [with_suffixes(text, 24, None) for text in case["in"]] == case["fps24"]
        assert [with_suffixes(text, 24, "4") for text in case["in"]] == case["fps24_motion4"]
        assert [with_suffixes(text, 16, None) for text in case["in"]] == case["fps16"]


def test_command_line_texts_arrive_byte_for_byte():
    entries = read_prompts(HOSTILE, [], [])
    assert [entry.text for entry in entries] == HOSTILE
    assert entries[1] == PromptEntry(1, "a cat's eye", (), PromptSettings(), "--prompt 2")


@pytest.mark.parametrize("newline", ["\n", "\r\n"])
@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
def test_csv_keeps_quoted_newlines_and_counts_lines(tmp_path, newline, bom):
    lines = ["text,ref,seed", '"one, ""two""', 'three",,7', "", "  four  ,a.png;b.png,"]
    path = written(tmp_path / "list.csv", bom + newline.join(lines).encode())
    one, four = read_prompts([], [path], [])
    assert one == PromptEntry(0, f'one, "two"{newline}three', (), PromptSettings(seed=7), f"{path} line 2")
    assert four.text == "  four  "
    assert four.refs == (os.path.abspath("a.png"), os.path.abspath("b.png"))
    assert (four.settings, four.source) == (PromptSettings(), f"{path} line 5")


def test_open_sora_csv_columns_work_as_they_are(tmp_path):
    header = ",path,id,text,ref,name,neg,num_frames,height,width,aspect_ratio,resolution,fps"
    path = written(tmp_path / "list.csv", f"{header}\n0,v.mp4,3,# sea,,clip_3,blurry,51,256,256,1.0,65536,24\n")
    (entry,) = read_prompts([], [path], [])
    assert (entry.text, entry.refs, entry.name) == ("# sea", (), "clip_3")
    assert entry.settings == PromptSettings(negative_prompt="blurry")


def test_every_setting_has_a_column(tmp_path):
    header = "text,seed,num_steps,guidance,guidance_img,cond_type,motion_score,num_samples,negative_prompt"
    path = written(tmp_path / "list.csv", f"{header}\nsea,0,13,7.5,3,v2v_tail_easy,6,2.0, bad \n")
    expected = PromptSettings(0, 13, 7.5, 3.0, "v2v_tail_easy", "6", 2, " bad ")
    assert read_prompts([], [path], [])[0].settings == expected


def test_the_small_hostile_lists_get_one_line_each():
    cases = Path(__file__).parents[1] / "cases"
    assert problems_of([], [cases / "bigseed.csv", cases / "semi.csv"]) == (
        f"{cases / 'semi.csv'} line 1: its columns are separated by semicolons; save it with commas",
        f"{cases / 'bigseed.csv'} line 2: seed={2**63} must be a whole number, at least 0 and at most {2**63 - 1}",
    )


@pytest.mark.parametrize(
    ("header", "name"), [("text;ref", "semicolons"), ("ref\t text", "tabs"), ('name|"text"', "bars")]
)
def test_another_separator_is_named(tmp_path, header, name):
    path = written(tmp_path / "list.csv", f"{header}\na red circle;\n")
    assert problems_of([], [path]) == (f"{path} line 1: its columns are separated by {name}; save it with commas",)


def test_references_may_start_at_the_home(tmp_path, monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")
    path = written(tmp_path / "list.csv", "text,ref\nsea,~/a.png;~b.png\n")
    flag, row = read_prompts(["one"], [path], ["~/c.png"])
    assert flag.refs == ("/home/me/c.png",)
    assert row.refs == ("/home/me/a.png", os.path.abspath("~b.png"))


def test_jsonl_has_the_same_keys(tmp_path):
    rows = [
        {"text": HOSTILE[4], "ref": ["a;b.png", "/c.png"], "seed": 5, "guidance": 2, "motion_score": 4},
        {"text": "sea", "ref": "a.png;b.png", "seed": None, "num_steps": "9"},
    ]
    path = written(tmp_path / "list.jsonl", "\n\n".join(json.dumps(row, ensure_ascii=False) for row in rows))
    first, second = read_prompts([], [path], [])
    assert (first.text, first.refs) == (HOSTILE[4], (os.path.abspath("a;b.png"), "/c.png"))
    assert first.settings == PromptSettings(seed=5, guidance=2.0, motion_score="4")
    assert second.refs == (os.path.abspath("a.png"), os.path.abspath("b.png"))
    assert (second.settings, second.source) == (PromptSettings(num_steps=9), f"{path} line 3")


@pytest.mark.parametrize("number", ["4.10", "1e1", "-0.0", "1E2", "10"])
def test_a_number_of_jsonl_is_read_as_it_is_written(tmp_path, number):
    """Where the setting is a text; where it is a number, as that number."""
    line = (
        f'{{"text": "sea", "motion_score": {number}, "name": {number}, "guidance": {number.strip("-")}, "seed": 1e3}}'
    )
    (entry,) = read_prompts([], [written(tmp_path / "list.jsonl", line)], [])
    assert (entry.settings.motion_score, entry.name) == (number, number)
    assert (entry.settings.guidance, entry.settings.seed) == (float(number.strip("-")), 1000)
    for key in ("text", "ref"):
        path = written(
            tmp_path / "bad.jsonl", f'{{"text": "sea", "{key}": {number}}}'.replace('"text": "sea", "text"', '"text"')
        )
        assert problems_of([], [path])[0].endswith(f"{key} cannot be a number")


def test_txt_has_one_prompt_per_line(tmp_path):
    path = written(tmp_path / "LIST.TXT", "\ufeffsea, \u2028 sky\r\n \n# not a comment\n")
    assert [(e.text, e.source) for e in read_prompts([], [path], [])] == [
        ("sea, \u2028 sky", f"{path} line 1"),
        ("# not a comment", f"{path} line 3"),
    ]


def test_texts_come_first_then_files_in_their_order(tmp_path):
    b = written(tmp_path / "b.txt", "two\n")
    a = written(tmp_path / "a.csv", "text\nthree\n")
    assert [(e.index, e.text) for e in read_prompts(["one"], [b, a], [])] == [(0, "one"), (1, "two"), (2, "three")]


@pytest.mark.parametrize(
    ("refs", "expected"),
    [
        ([], [(), ()]),
        (["/a.png"], [("/a.png",), ("/a.png",)]),
        (["/a.png; /b.png"], [("/a.png", "/b.png"), ("/a.png", "/b.png")]),
        (["/a.png", "/b.png;/c.png"], [("/a.png",), ("/b.png", "/c.png")]),
    ],
)
def test_command_line_references_pair_with_texts(refs, expected):
    assert [entry.refs for entry in read_prompts(["one", "two"], [], refs)] == expected


def test_command_line_mistakes():
    assert problems_of(["a", " "], []) == ("--prompt 2: the text is empty",)
    assert problems_of(["a\udcff"], []) == ("--prompt 1: the text is not valid UTF-8",)
    assert problems_of(["a"], [], ["b", "c"])[0].startswith("--ref: 2 references for 1 prompts; give one for all")
    assert problems_of([], [], ["b"])[0] == "--ref: goes with --prompt; prompts of a file have a column 'ref'"
    assert "URLs are not fetched" in problems_of(["a"], [], ["https://example.org/a.png"])[0]
    assert problems_of(["a"], [], ["b;;c"]) == ("--prompt 1: there is an empty reference between two ';'",)


def test_all_mistakes_of_all_files_at_once(tmp_path):
    missing = tmp_path / "missing.csv"
    head = written(tmp_path / "head.csv", "name,ref\nx,y\n")
    bad = written(tmp_path / "bad.csv", "text,sed,seed,cond_type\nsea,1,x,i2v_hed\n ,,-1,\na,b,c,d,e\nb,2,,\n")
    rows = written(tmp_path / "rows.jsonl", '{"text": "a"\n[1]\n{"ref": "x"}\n{"text": 3}\n{"text": "\\ud800"}\n')
    latin = written(tmp_path / "latin.txt", "sea\n\xe9t\xe9".encode("latin-1"))
    utf16 = written(tmp_path / "utf16.txt", "sea".encode("utf-16"))
    empty = written(tmp_path / "empty.csv", "text\n")
    blank = written(tmp_path / "blank.txt", "\n")
    quote = written(tmp_path / "quote.csv", 'text\nsea\n"never closed\n')
    other = written(tmp_path / "list.yaml", "")
    folder = tmp_path / "folder.csv"
    folder.mkdir()
    found = problems_of([], [missing, head, bad, rows, latin, utf16, empty, blank, quote, other, folder])
    assert sorted(found) == sorted(
        [
            f"{missing}: no such file",
            f"{head} line 1: there is no column 'text'; the columns are name, ref",
            f"{bad} line 4: more fields than the 4 columns; a text that contains a comma needs double quotes",
            f"{bad} line 1: unknown column 'sed'; did you mean seed?",
            f"{bad} line 2: seed=x must be a whole number, at least 0 and at most 9223372036854775807",
            f"{bad} line 2: cond_type=i2v_hed is not known; did you mean i2v_head?",
            f"{bad} line 3: the text is empty",
            f"{bad} line 3: seed=-1 must be a whole number, at least 0 and at most 9223372036854775807",
            f"{rows} line 1: not JSON: Expecting ',' delimiter at column 13",
            f"{rows} line 2: expected a JSON object, got a list",
            f"{rows} line 3: there is no key 'text'; the keys are: ref",
            f"{rows} line 4: text cannot be a number",
            f"{rows} line 5: the text is not valid UTF-8",
            f"{latin} line 2: not UTF-8 at byte 4 (0xe9): save it as UTF-8",
            f"{utf16} line 1: not UTF-8 at byte 0 (0xff); it looks like UTF-16: save it as UTF-8",
            f"{empty}: the file holds no prompts",
            f"{blank}: the file holds no prompts",
            f"{quote} line 3: not csv: unexpected end of data",
            f"{other}: a prompt file must end in .csv, .jsonl, .txt, not in '.yaml'",
            f"{folder}: this is a folder; give a file of prompts",
        ]
    )


@pytest.mark.parametrize(
    ("cell", "complaint"),
    [
        ({"num_steps": 0}, "num_steps=0 must be a whole number, at least 1 and at most 10000"),
        ({"num_steps": 1.5}, "num_steps=1.5 must be a whole number, at least 1 and at most 10000"),
        (
            {"seed": 2**63},
            "seed=9223372036854775808 must be a whole number, at least 0 and at most 9223372036854775807",
        ),
        ({"seed": True}, "seed cannot be true or false"),
        ({"guidance": "nan"}, "guidance=nan must be a number, at least 0"),
        ({"guidance": -1}, "guidance=-1 must be a number, at least 0"),
        ({"ref": [1]}, "ref cannot be a list"),
        ({"neg": "a", "negative_prompt": "b"}, "both neg and negative_prompt are set; keep one"),
    ],
)
def test_bad_cells(tmp_path, cell, complaint):
    path = written(tmp_path / "list.jsonl", json.dumps({"text": "sea", **cell}))
    assert problems_of([], [path]) == (f"{path} line 1: {complaint}",)


def test_keys_and_columns_that_appear_twice(tmp_path):
    twice_csv = written(tmp_path / "a.csv", "text,seed,seed\nsea,1,2\n")
    twice_json = written(tmp_path / "a.jsonl", '{"text": "sea", "seed": 1, "seed": 2}')
    assert problems_of([], [twice_csv, twice_json]) == (
        f"{twice_csv} line 1: these columns appear twice: seed",
        f"{twice_json} line 1: not usable JSON: these keys appear twice: seed",
    )


def test_cond_type_of_a_prompt():
    plain = PromptEntry(0, "sea", (), PromptSettings(), "--prompt 1")
    with_ref = PromptEntry(0, "sea", ("/a.png",), PromptSettings(), "--prompt 1")
    two = PromptEntry(0, "sea", ("/a.png", "/b.png"), PromptSettings(), "--prompt 1")
    own = PromptEntry(0, "sea", ("/a.png",), PromptSettings(cond_type="i2v_tail"), "--prompt 1")
    expected = ["t2v", "i2v_head", "i2v_loop", "i2v_tail"]
    assert [cond_type_of(entry, None) for entry in (plain, with_ref, two, own)] == expected
    assert [cond_type_of(entry, "t2v") for entry in (plain, with_ref, own)] == ["t2v", "t2v", "i2v_tail"]


def test_names_from_open_soras_comments_get_the_real_name():
    with pytest.raises(ValueError, match="did you mean v2v_head"):
        check_cond_type("v2v_head_half")
    with pytest.raises(ValueError, match="motion_score=dynamic is not supported"):
        check_motion_score("dynamic")


def test_the_launchers_half_imports_nothing_heavy():
    code = (
        "import sys, opensora_launch.media.prompts, opensora_launch.media.reference_files;"
        "print([m for m in ('torch', 'numpy', 'av', 'PIL') if m in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
