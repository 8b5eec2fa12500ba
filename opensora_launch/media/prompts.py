"""What to make: prompts from the command line and from files, each with its references and its own settings.

The text of a prompt is kept byte for byte; `with_suffixes` makes what the text encoders read. Nothing heavy is
imported: the launcher runs this on a login node.
"""

import difflib
import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from types import MappingProxyType
from typing import Any, Literal

from opensora_launch.errors import UserError
from opensora_launch.media.prompt_files import Cell, Problems, RawPrompt, read_prompt_file, where


@dataclass(frozen=True)
class RefPart:
    """What a condition takes of a prompt's references: of which one (0 first, -1 last), and from which end."""

    which: Literal[0, -1]
    end: Literal["head", "tail"]


@dataclass(frozen=True)
class CondType:
    """A way to condition on references. `frames` are pixel frames taken of each part."""

    parts: tuple[RefPart, ...]
    kinds: tuple[str, ...]
    frames: int
    max_references: int


_HEAD, _TAIL = RefPart(0, "head"), RefPart(-1, "tail")
_ANY, _VIDEO = ("image", "video"), ("video",)
# Open-Sora's choice of frames: 8 latent frames and the first (33 pixel frames), or 16 and the first (65).
COND_TYPES: Mapping[str, CondType] = MappingProxyType(
    {
        "t2v": CondType((), (), 0, 0),
        "i2v_head": CondType((_HEAD,), _ANY, 1, 2),
        "i2v_tail": CondType((_TAIL,), _ANY, 1, 2),
        "i2v_loop": CondType((_HEAD, _TAIL), _ANY, 1, 2),
        "v2v_head": CondType((_HEAD,), _VIDEO, 33, 1),
        "v2v_tail": CondType((_TAIL,), _VIDEO, 33, 1),
        "v2v_head_easy": CondType((_HEAD,), _VIDEO, 65, 1),
        "v2v_tail_easy": CondType((_TAIL,), _VIDEO, 65, 1),
    }
)


@dataclass(frozen=True)
class PromptSettings:
    """What one prompt sets for itself; None leaves the run's setting."""

    seed: int | None = None
    num_steps: int | None = None
    guidance: float | None = None
    guidance_img: float | None = None
    cond_type: str | None = None
    motion_score: str | None = None
    num_samples: int | None = None
    negative_prompt: str | None = None


@dataclass(frozen=True)
class PromptEntry:
    """One prompt. `refs` are absolute paths; `source` is where it was written; `name` is Open-Sora's csv column."""

    index: int
    text: str
    refs: tuple[str, ...]
    settings: PromptSettings
    source: str
    name: str | None = None


SETTING_COLUMNS = tuple(field.name for field in fields(PromptSettings))
COLUMNS = ("text", "ref", "name", "neg", *SETTING_COLUMNS)


def read_prompts(texts: Sequence[str], files: Sequence[Path], refs: Sequence[str]) -> tuple[PromptEntry, ...]:
    """All prompts of a run, numbered from 0: the texts of the command line, then each file's in its order.

    `refs` go with `texts`: one for all of them, or one each. References are joined by ";" as in Open-Sora's csv, and a
    relative path starts at the current folder. Raises UserError with every problem of every file.
    """
    entries, wrong = collect_prompts(texts, files, refs)
    if wrong:
        raise UserError("these prompts cannot be used", wrong)
    return entries


def collect_prompts(
    texts: Sequence[str], files: Sequence[Path], refs: Sequence[str]
) -> tuple[tuple[PromptEntry, ...], list[str]]:
    """The same with the problems beside it: what is wrong with references can then be told together with them."""
    problems = Problems()
    rows = [(source, row) for source, row in _command_line_rows(texts, refs, problems)]
    for path in files:
        rows += [(str(path), row) for row in read_prompt_file(path, COLUMNS, problems)]
    if not texts and not files:
        problems.add("no prompts", "give --prompt TEXT or --prompts FILE")
    entries = [_entry(index, source, row, problems) for index, (source, row) in enumerate(rows)]
    return tuple(entries), problems.texts()


def with_suffixes(text: str, fps: int, motion_score: str | None) -> str:
    """The text the encoders read: stripped, a full stop, " 24 FPS." unless it ends so, " 4 motion score.".

    Open-Sora was trained with these tails. Negative prompts get none.
    """
    text = text.strip()
    if not text.endswith("."):
        text += "."
    if not re.search(r"\d+ FPS\.$", text):
        text += f" {fps} FPS."
    return text if motion_score is None else f"{text} {motion_score} motion score."


def cond_type_of(entry: PromptEntry, run_cond_type: str | None) -> str:
    """The prompt's own condition type, else the run's, else by its references: none t2v, one i2v_head, two i2v_loop."""
    by_references = ("t2v", "i2v_head", "i2v_loop")[min(len(entry.refs), 2)]
    return entry.settings.cond_type or run_cond_type or by_references


def check_cond_type(value: str) -> str:
    """`value` if it is a condition type; ValueError that names the nearest otherwise."""
    if value in COND_TYPES:
        return value
    near = difflib.get_close_matches(value, COND_TYPES, n=1)
    hint = f"; the nearest is {near[0]}" if near else ""
    raise ValueError(f"cond_type={value} is none of {', '.join(COND_TYPES)}{hint}")


def _command_line_rows(texts: Sequence[str], refs: Sequence[str], problems: Problems) -> list[tuple[str, RawPrompt]]:
    if refs and not texts:
        problems.add("--ref", "goes with --prompt; prompts of a file have a column 'ref'")
    elif len(refs) > 1 and len(refs) != len(texts):
        message = f"{len(refs)} references for {len(texts)} prompts; give one for all or one each"
        problems.add("--ref", f"{message} (two of one prompt are joined by ';')")
    for number, ref in enumerate(refs, start=1):
        if not ref.strip():
            problems.add("--ref", "the path is empty (a variable of the shell that is not set?)", number)
    each = list(refs) * len(texts) if len(refs) == 1 else [*refs, *[""] * len(texts)]
    return [("--prompt", RawPrompt(i + 1, {"text": text, "ref": each[i]})) for i, text in enumerate(texts)]


def _entry(index: int, source: str, row: RawPrompt, problems: Problems) -> PromptEntry:
    """The entry of a row. What is wrong is added to `problems`; the entry is then of no use but to go on."""
    text = row.cells["text"]
    assert isinstance(text, str)
    if not text.strip():
        problems.add(source, "the text is empty", row.line)
    elif not is_unicode(text):
        problems.add(source, "the text is not valid UTF-8", row.line)
    values: dict[str, Any] = {}
    for column in SETTING_COLUMNS:
        cell = row.cells.get(column, "")
        if cell:
            try:
                values[column] = _PARSERS[column](str(cell))
            except ValueError as error:
                problems.add(source, str(error), row.line)
    neg = row.cells.get("neg", "")
    if neg and "negative_prompt" in values:
        problems.add(source, "both neg and negative_prompt are set; keep one", row.line)
    elif neg:
        values["negative_prompt"] = neg
    refs = _references(row.cells.get("ref", ""), source, row.line, problems)
    name = str(row.cells.get("name", "")) or None
    return PromptEntry(index, text, refs, PromptSettings(**values), where(source, row.line), name)


def _references(cell: Cell, source: str, line: int, problems: Problems) -> tuple[str, ...]:
    """Absolute paths of a cell's references. A list of jsonl is taken as it is, so that a path may hold a ";"."""
    paths = [path.strip() for path in cell.split(";")] if isinstance(cell, str) else list(cell)
    if paths == [""]:
        return ()
    for path in paths:
        if not path:
            problems.add(source, "an empty reference between two ';'", line)
        elif re.match(r"(?i)(https?|ftps?)://", path):
            problems.add(source, f"ref {path}: addresses are not fetched; download the file and give its path", line)
    return tuple(os.path.abspath(path) for path in paths)


def is_unicode(text: str) -> bool:
    """Whether UTF-8 can hold the text: bytes of argv that are no UTF-8 and half an escape in JSON cannot."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return False
    return True


def _whole(name: str, least: int, most: int) -> Callable[[str], int]:
    """A parser of whole numbers; 42.0 too, which pandas writes where a column has gaps."""

    def parse(cell: str) -> int:
        match = re.fullmatch(r"([+-]?[0-9]{1,30})(\.0*)?", cell.strip())
        if match is None or not least <= int(match[1]) <= most:
            top = "" if most >= 2**31 else f" and at most {most}"
            raise ValueError(f"{name}={cell} must be a whole number of at least {least}{top}")
        return int(match[1])

    return parse


def _scale(name: str) -> Callable[[str], float]:
    def parse(cell: str) -> float:
        try:
            value = float(cell)
        except ValueError:
            value = math.nan
        if not (math.isfinite(value) and value >= 0):
            raise ValueError(f"{name}={cell} must be a number of at least 0")
        return value

    return parse


def check_motion_score(value: str) -> str:
    """`value` stripped; ValueError for "dynamic", for which Open-Sora asks a paid service."""
    if value.strip() == "dynamic":
        raise ValueError("motion_score=dynamic is not offered (it sends the prompt to a paid service); give a number")
    return value.strip()


_PARSERS: Mapping[str, Callable[[str], object]] = MappingProxyType(
    {
        "seed": _whole("seed", 0, 2**63 - 1),
        "num_steps": _whole("num_steps", 1, 10_000),
        "guidance": _scale("guidance"),
        "guidance_img": _scale("guidance_img"),
        "cond_type": lambda cell: check_cond_type(cell.strip()),
        "motion_score": check_motion_score,
        "num_samples": _whole("num_samples", 1, 10_000),
        "negative_prompt": str,
    }
)
