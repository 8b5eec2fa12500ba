"""Prompts from the command line and from files, each with its references and its own settings.

The text of a prompt is kept byte for byte; `with_suffixes` makes the text that the encoders read. This module imports
nothing heavy, because the launcher runs it on a login node.
"""

import math
import os
import re
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any, Literal

from opensora_launch.errors import Problems, did_you_mean
from opensora_launch.media.prompt_files import Cell, RawPrompt, line_name, read_prompt_file
from opensora_launch.schema.config import MAX_COUNT, MAX_SEED


@dataclass(frozen=True)
class RefPart:
    """The part of a prompt's references that a condition takes: from which one (0 first, -1 last), at which end."""

    which: Literal[0, -1]
    end: Literal["head", "tail"]


@dataclass(frozen=True)
class CondType:
    """A way to condition on references. `frames` is the number of pixel frames taken for each part."""

    parts: tuple[RefPart, ...]
    kinds: tuple[str, ...]
    frames: int
    max_references: int


_HEAD, _TAIL = RefPart(0, "head"), RefPart(-1, "tail")
_ANY, _VIDEO = ("image", "video"), ("video",)
# Open-Sora's choice of frames: 8 latent frames and the first (33 pixel frames), or 16 and the first (65).
COND_TYPES: Mapping[str, CondType] = {
    "t2v": CondType((), (), 0, 0),
    "i2v_head": CondType((_HEAD,), _ANY, 1, 2),
    "i2v_tail": CondType((_TAIL,), _ANY, 1, 2),
    "i2v_loop": CondType((_HEAD, _TAIL), _ANY, 1, 2),
    "v2v_head": CondType((_HEAD,), _VIDEO, 33, 1),
    "v2v_tail": CondType((_TAIL,), _VIDEO, 33, 1),
    "v2v_head_easy": CondType((_HEAD,), _VIDEO, 65, 1),
    "v2v_tail_easy": CondType((_TAIL,), _VIDEO, 65, 1),
}


@dataclass(frozen=True)
class PromptSettings:
    """The settings of one prompt; None keeps the run's setting."""

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
    """One prompt. `refs` are absolute paths, `source` says where it was written, `name` is Open-Sora's csv column.

    `refined` is what the encoders read in place of `text`, if it is not None; `refined_by` is the command that made it.
    """

    index: int
    text: str
    refs: tuple[str, ...]
    settings: PromptSettings
    source: str
    name: str | None = None
    refined: str | None = None
    refined_by: str | None = None


SETTING_COLUMNS = tuple(field.name for field in fields(PromptSettings))
COLUMNS = ("text", "ref", "name", "refined", "neg", *SETTING_COLUMNS)


def read_prompts(
    texts: Sequence[str], files: Sequence[Path], refs: Sequence[str], problems: Problems
) -> tuple[PromptEntry, ...]:
    """Return all prompts of a run, numbered from 0: the texts of the command line, then those of each file in order.

    `refs` belong to `texts`: one for all of them, or one for each. References are separated by ";" as in Open-Sora's
    csv; a relative path starts at the current folder, and "~/" at the home. If `problems` were added, the prompts are
    not usable.
    """
    prompts = _command_line_prompts(texts, refs, problems)
    for path in files:
        prompts += [(str(path), prompt) for prompt in read_prompt_file(path, COLUMNS, problems)]
    return tuple(_entry(index, source, prompt, problems) for index, (source, prompt) in enumerate(prompts))


def with_suffixes(text: str, fps: int, motion_score: str | None) -> str:
    """Return the text for the encoders: stripped, with a full stop, " 24 FPS." (unless present) and " 4 motion score.".

    Open-Sora was trained with these suffixes. Negative prompts get none.
    """
    text = text.strip()
    if not text.endswith("."):
        text += "."
    if not re.search(r"\d+ FPS\.$", text):
        text += f" {fps} FPS."
    return text if motion_score is None else f"{text} {motion_score} motion score."


def cond_type_of(entry: PromptEntry, run_cond_type: str | None) -> str:
    """Return the prompt's condition type, else the run's, else by the number of references: t2v, i2v_head, i2v_loop."""
    by_references = ("t2v", "i2v_head", "i2v_loop")[min(len(entry.refs), 2)]
    return entry.settings.cond_type or run_cond_type or by_references


def check_cond_type(value: str) -> str:
    """Return `value` if it is a condition type, else raise a ValueError that names the nearest."""
    if value in COND_TYPES:
        return value
    hint = did_you_mean(value, COND_TYPES) or f"use one of {', '.join(COND_TYPES)}"
    raise ValueError(f"cond_type={value} is not known; {hint}")


def _command_line_prompts(texts: Sequence[str], refs: Sequence[str], problems: Problems) -> list[tuple[str, RawPrompt]]:
    if refs and not texts:
        problems.add_at("--ref", "goes with --prompt; prompts of a file have a column 'ref'")
    elif len(refs) > 1 and len(refs) != len(texts):
        message = f"{len(refs)} references for {len(texts)} prompts; give one for all prompts or one for each"
        problems.add_at("--ref", f"{message} (separate two references of one prompt by ';')")
    for number, ref in enumerate(refs, start=1):
        if not ref.strip():
            message = "the path is empty (an unset shell variable?)"
            problems.add_at(line_name("--ref", number), message, file="--ref")
    each = list(refs) * len(texts) if len(refs) == 1 else [*refs, *[""] * len(texts)]
    return [("--prompt", RawPrompt(i + 1, {"text": text, "ref": each[i]})) for i, text in enumerate(texts)]


def _entry(index: int, source: str, prompt: RawPrompt, problems: Problems) -> PromptEntry:
    """Check a prompt's cells. If `problems` were added, the returned entry is only a placeholder."""
    place, cells = line_name(source, prompt.line), prompt.cells
    add = partial(problems.add_at, place, file=source)
    text = cells["text"]
    assert isinstance(text, str)
    if not text.strip():
        add("the text is empty")
    elif not is_unicode(text):
        add("the text is not valid UTF-8")
    values: dict[str, Any] = {}
    for column in SETTING_COLUMNS:
        if cell := cells.get(column, ""):
            try:
                values[column] = _PARSERS[column](str(cell))
            except ValueError as error:
                add(str(error))
    neg = cells.get("neg", "")
    if neg and "negative_prompt" in values:
        add("both neg and negative_prompt are set; keep one")
    elif neg:
        values["negative_prompt"] = neg
    refs = _references(cells.get("ref", ""), add)
    name, refined = (str(cells.get(column, "")).strip() or None for column in ("name", "refined"))
    if not is_unicode(f"{name}{refined}"):
        add("the name or the refined text is not valid UTF-8")
    return PromptEntry(index, text, refs, PromptSettings(**values), place, name, refined)


def _references(cell: Cell, add: Callable[[str], None]) -> tuple[str, ...]:
    """Return a cell's references as absolute paths. A list of a jsonl is not split, so that a path may hold a ";"."""
    paths = [path.strip() for path in cell.split(";")] if isinstance(cell, str) else list(cell)
    if paths == [""]:
        return ()
    for path in paths:
        if not path:
            add("there is an empty reference between two ';'")
        elif re.match(r"(?i)(https?|ftps?)://", path):
            add(f"ref {path}: URLs are not fetched; download the file and give its path")
    return tuple(os.path.abspath(os.path.expanduser(path)) for path in paths)


def is_unicode(text: str) -> bool:
    """Return whether UTF-8 can hold the text. Invalid bytes in argv and half of a surrogate pair in JSON cannot."""
    return re.search("[\ud800-\udfff]", text) is None


def _whole(name: str, least: int, most: int, cell: str) -> int:
    """Parse a whole number. 42.0 is one, which pandas writes if a column has gaps, and 1e3."""
    is_number = re.fullmatch(r"[+-]?[0-9]{1,30}(\.[0-9]*)?([eE][+-]?[0-9]{1,3})?", cell.strip())
    value = Decimal(cell.strip()) if is_number else None
    if value is None or not least <= value <= most or value != int(value):
        raise ValueError(f"{name}={cell} must be a whole number, at least {least} and at most {most}")
    return int(value)


def _scale(name: str, cell: str) -> float:
    with suppress(ValueError):
        if 0 <= (value := float(cell)) < math.inf:
            return value
    raise ValueError(f"{name}={cell} must be a number, at least 0")


def check_motion_score(value: str) -> str:
    """Return `value` stripped; raise ValueError for "dynamic", for which Open-Sora calls a paid service."""
    if value.strip() == "dynamic":
        raise ValueError("motion_score=dynamic is not supported (it sends the prompt to a paid service); give a number")
    return value.strip()


_PARSERS: Mapping[str, Callable[[str], object]] = {
    "seed": partial(_whole, "seed", 0, MAX_SEED),
    "num_steps": partial(_whole, "num_steps", 1, MAX_COUNT),
    "guidance": partial(_scale, "guidance"),
    "guidance_img": partial(_scale, "guidance_img"),
    "cond_type": lambda cell: check_cond_type(cell.strip()),
    "motion_score": check_motion_score,
    "num_samples": partial(_whole, "num_samples", 1, MAX_COUNT),
    "negative_prompt": str,
}
