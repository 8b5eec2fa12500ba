"""Read prompt lists from disk (csv, jsonl, txt) as prompts with named cells.

This module knows the three formats. `prompts.py` decides what a cell may hold. It imports nothing heavy, because the
launcher runs it on a login node.
"""

import csv
import io
import json
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from opensora_launch.errors import Problems, did_you_mean

Cell = str | tuple[str, ...]
# Columns of Open-Sora's training lists, and pandas' unnamed index. Open-Sora's inference reads only `fps` of them.
IGNORED_COLUMNS = ("", "Unnamed: 0", "id", "path", "num_frames", "height", "width", "aspect_ratio", "resolution", "fps")
OTHER_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars"}  # of csv files by spreadsheets


@dataclass(frozen=True)
class RawPrompt:
    """One prompt as written. `line` counts from 1 and is where the prompt starts; a tuple is a list of references."""

    line: int
    cells: dict[str, Cell]


def line_name(source: str, line: int) -> str:
    """Name a line for the user: "list.csv line 7", or "--prompt 2" for the second use of a flag."""
    return f"{source} {line}" if source.startswith("--") else f"{source} line {line}"


def read_prompt_file(path: Path, known: Sequence[str], problems: Problems) -> list[RawPrompt]:
    """Return all prompts of a csv, jsonl or txt file. `known` are the columns that have a meaning.

    Lines that cannot be read are added to `problems` and left out.
    """
    source, readers = _Source(str(path), known, problems), {".csv": _read_csv, ".jsonl": _read_jsonl, ".txt": _read_txt}
    reader = readers.get(path.suffix.lower())
    if path.is_dir():
        source.add("this is a folder; give a file of prompts")
    elif reader is None:
        ending = f"not in {path.suffix!r}" if path.suffix else "and this one has no ending"
        source.add(f"a prompt file must end in {', '.join(readers)}, {ending}")
    elif (text := _read_text(path, source)) is not None:
        before = len(problems.lines)
        prompts = reader(text, source)
        if not prompts and len(problems.lines) == before:
            source.add("the file holds no prompts")
        return prompts
    return []


@dataclass(frozen=True)
class _Source:
    """The file being read, the columns it may have, and the collector of its problems."""

    name: str
    known: Sequence[str]
    problems: Problems

    def add(self, message: str, line: int | None = None) -> None:
        place = self.name if line is None else line_name(self.name, line)
        self.problems.add_at(place, message, file=self.name)

    def check_columns(self, columns: Iterable[str], line: int) -> None:
        for column in columns:
            if column not in self.known and column not in IGNORED_COLUMNS:
                hint = did_you_mean(column, self.known) or f"the columns are {', '.join(self.known)}"
                self.add(f"unknown column '{column}'; {hint}", line)


def _read_text(path: Path, source: _Source) -> str | None:
    """Return the text without its byte order mark, line endings unchanged; None if the file cannot be read."""
    try:
        return path.read_bytes().decode("utf-8").removeprefix("\ufeff")
    except FileNotFoundError:
        source.add("no such file")
    except OSError as error:
        source.add(f"cannot be read: {error.strerror}")
    except UnicodeDecodeError as error:
        data, offset = error.object, error.start
        hint = "; it looks like UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        message = f"not UTF-8 at byte {offset} (0x{data[offset]:02x}){hint}: save it as UTF-8"
        source.add(message, data.count(b"\n", 0, offset) + 1)
    return None


def _read_csv(text: str, source: _Source) -> list[RawPrompt]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] | None = None
    prompts: list[RawPrompt] = []
    line = 1
    try:
        for cells in reader:
            start, line = line, reader.line_num + 1
            if not cells:
                continue
            if columns is None:
                columns = [cell.strip() for cell in cells]
                if not _header_is_right(columns, start, source):
                    return []
            elif len(cells) > len(columns):
                hint = "a text that contains a comma needs double quotes"
                source.add(f"more fields than the {len(columns)} columns; {hint}", start)
            else:
                prompts.append(RawPrompt(start, dict(zip(columns, cells, strict=False))))
    except csv.Error as error:
        source.add(f"not csv: {error}", line)
    return prompts


def _header_is_right(columns: list[str], line: int, source: _Source) -> bool:
    """Check the header, so that a wrong one is reported once and not for every row."""
    twice = sorted({column for column in columns if column and columns.count(column) > 1})
    if twice:
        source.add(f"these columns appear twice: {', '.join(twice)}", line)
    if "text" not in columns:
        for separator, name in OTHER_SEPARATORS.items():
            if "text" in (cell.strip(' "') for column in columns for cell in column.split(separator)):
                source.add(f"its columns are separated by {name}; save it with commas", line)
                return False
        source.add(f"there is no column 'text'; the columns are {', '.join(columns)}", line)
    source.check_columns(columns, line)
    return not twice and "text" in columns


class _Number(str):
    """A number of JSON as it is written: the cell that takes it may be a text."""


def _read_jsonl(text: str, source: _Source) -> list[RawPrompt]:
    prompts: list[RawPrompt] = []
    for line, content in _lines(text):
        try:
            item = json.loads(content, object_pairs_hook=_pairs_once, parse_int=_Number, parse_float=_Number)
        except json.JSONDecodeError as error:
            source.add(f"not JSON: {error.msg} at column {error.colno}", line)
            continue
        except (RecursionError, ValueError) as error:
            source.add(f"not usable JSON: {error}", line)
            continue
        if not isinstance(item, dict):
            source.add(f"expected a JSON object, got {_json_kind(item)}", line)
            continue
        item = _from_run_record(item)
        if "text" not in item:
            source.add(f"there is no key 'text'; the keys are: {', '.join(item) or 'none'}", line)
        source.check_columns(item, line)
        cells: dict[str, Cell] = {}
        for key, value in item.items():
            if (cell := _json_cell(key, value)) is None:
                source.add(f"{key} cannot be {_json_kind(value)}", line)
            else:
                cells[key] = cell
        if "text" in cells:
            prompts.append(RawPrompt(line, cells))
    return prompts


def _from_run_record(item: dict[str, object]) -> dict[str, object]:
    """Turn a line of a run's prompts.jsonl into one that a user would write, so that a run can be repeated from it."""
    settings, chosen = item.get("settings"), item.get("chosen", {})
    if not (isinstance(settings, dict) and isinstance(chosen, dict) and {"index", "refs", "videos"} <= item.keys()):
        return item
    kept = {key: value for key, value in item.items() if key in ("text", "name", "refined")}
    return kept | {"ref": item["refs"]} | chosen | settings | {"seed": item.get("seed")}


def _pairs_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = [key for key, _ in pairs]
    if twice := sorted({key for key in keys if keys.count(key) > 1}):
        raise ValueError(f"these keys appear twice: {', '.join(twice)}")
    return dict(pairs)


def _json_cell(key: str, value: object) -> Cell | None:
    """Return a JSON value as the cell of a csv (null is an empty cell); None if the key cannot hold the value."""
    if isinstance(value, str) and not isinstance(value, _Number):
        return value
    if value is None and key != "text":
        return ""
    if isinstance(value, list) and key == "ref" and all(_json_kind(item) == "a string" for item in value):
        return tuple(value)
    if _json_kind(value) == "a number" and key not in ("text", "refined", "ref"):
        return str(value)
    return None


def _json_kind(value: object) -> str:
    kinds = {type(None): "null", bool: "true or false", str: "a string", list: "a list", dict: "an object"}
    return kinds.get(type(value), "a number")  # NaN and Infinity are a float


def _read_txt(text: str, source: _Source) -> list[RawPrompt]:
    return [RawPrompt(line, {"text": content}) for line, content in _lines(text)]


def _lines(text: str) -> list[tuple[int, str]]:
    """Return the non-blank lines, numbered from 1. Only LF, CRLF and CR end a line: a prompt may hold U+2028."""
    return [(number, line) for number, line in enumerate(re.split("\r\n|\n|\r", text), start=1) if line.strip()]
