"""Prompt lists on disk: csv, jsonl and txt, as rows of named cells.

This module knows the three formats; what a cell may hold is decided in `prompts.py`. It imports nothing heavy: the
launcher runs it on a login node.
"""

import csv
import difflib
import io
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

Cell = str | tuple[str, ...]
# Columns of Open-Sora's training lists, and pandas' unnamed index. Its inference reads none of them but `fps`.
IGNORED_COLUMNS = ("", "Unnamed: 0", "id", "path", "num_frames", "height", "width", "aspect_ratio", "resolution", "fps")


@dataclass(frozen=True)
class RawPrompt:
    """One prompt as written. `line` counts from 1 and is where the row starts; a tuple is a list of references."""

    line: int
    cells: dict[str, Cell]


@dataclass
class Problems:
    """What is wrong, in the order it was found. The same complaint about many lines is said once."""

    found: dict[tuple[str, str], list[str]] = field(default_factory=dict)

    def add(self, place: str, message: str, line: int | None = None) -> None:
        """`place` is a file or a flag; `line`, where there is one, is where in it."""
        self._say(place, message, place if line is None else where(place, line))

    def add_for_prompt(self, source: str, message: str) -> None:
        """`source` is a PromptEntry's: the same message about another prompt joins it, whichever file that is in."""
        self._say("", message, source)

    def _say(self, group: str, message: str, source: str) -> None:
        self.found.setdefault((group, message), []).append(source)

    def texts(self) -> list[str]:
        return [
            f"{sources[0]}: {message}" if len(sources) == 1 else f"{sources[0]} and {len(sources) - 1} more: {message}"
            for (_, message), sources in self.found.items()
        ]


def where(place: str, line: int) -> str:
    """How a line is named to the user: "list.csv line 7", and "--prompt 2" for the second of a flag."""
    return f"{place} {line}" if place.startswith("--") else f"{place} line {line}"


def read_prompt_file(path: Path, known: Sequence[str], problems: Problems) -> list[RawPrompt]:
    """All rows of a csv, jsonl or txt file; `known` are the columns that mean something.

    What cannot be read is added to `problems`; the other rows are returned.
    """
    readers: dict[str, Callable[[str, _Source], list[RawPrompt]]] = {
        ".csv": _csv_rows,
        ".jsonl": _jsonl_rows,
        ".txt": _txt_rows,
    }
    reader = readers.get(path.suffix.lower())
    if reader is None:
        problems.add(str(path), f"a prompt file ends in {', '.join(readers)}, not {path.suffix or 'nothing'!r}")
        return []
    text = _read_text(path, problems)
    if text is None:
        return []
    before = len(problems.found)
    rows = reader(text, _Source(str(path), known, problems))
    if not rows and len(problems.found) == before:
        problems.add(str(path), "no prompts in it")
    return rows


@dataclass(frozen=True)
class _Source:
    """Which file is read, what its columns may be, and where its problems go."""

    name: str
    known: Sequence[str]
    problems: Problems

    def add(self, message: str, line: int) -> None:
        self.problems.add(self.name, message, line)

    def check_columns(self, columns: Iterable[str], line: int) -> None:
        for column in columns:
            if column not in self.known and column not in IGNORED_COLUMNS:
                near = difflib.get_close_matches(column, self.known, n=1)
                hint = f"; the nearest is '{near[0]}'" if near else ""
                self.add(f"unknown column '{column}'{hint} (columns: {', '.join(self.known)})", line)


def _read_text(path: Path, problems: Problems) -> str | None:
    """The file as text without its byte order mark, line ends untouched; None where it cannot be read."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        problems.add(str(path), "no such file")
        return None
    except OSError as error:
        problems.add(str(path), f"cannot be read: {error.strerror}")
        return None
    try:
        return data.removeprefix(b"\xef\xbb\xbf").decode("utf-8")
    except UnicodeDecodeError as error:
        bom = 3 if data.startswith(b"\xef\xbb\xbf") else 0
        offset = error.start + bom
        line = data.count(b"\n", 0, offset) + 1
        hint = "; it looks like UTF-16" if data[:2] in (b"\xff\xfe", b"\xfe\xff") else ""
        problems.add(str(path), f"not UTF-8 at byte {offset} (0x{data[offset]:02x}){hint}: save it as UTF-8", line)
        return None


def _csv_rows(text: str, source: _Source) -> list[RawPrompt]:
    reader = csv.reader(io.StringIO(text, newline=""), strict=True)
    columns: list[str] | None = None
    rows: list[RawPrompt] = []
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
                message = f"more fields than the {len(columns)} columns; a text with a comma in it needs double quotes"
                source.add(message, start)
            else:
                rows.append(RawPrompt(start, dict(zip(columns, cells, strict=False))))
    except csv.Error as error:
        source.add(f"not csv: {error}", line)
    return rows


def _header_is_right(columns: list[str], line: int, source: _Source) -> bool:
    """A csv is refused by its header once, rather than by each of its rows."""
    twice = sorted({column for column in columns if column and columns.count(column) > 1})
    if twice:
        source.add(f"columns named twice: {', '.join(twice)}", line)
    if "text" not in columns:
        source.add(f"no column 'text'; the columns are {', '.join(columns)}", line)
    source.check_columns(columns, line)
    return not twice and "text" in columns


def _jsonl_rows(text: str, source: _Source) -> list[RawPrompt]:
    rows: list[RawPrompt] = []
    for line, content in _lines(text):
        try:
            item = json.loads(content, object_pairs_hook=_pairs_once)
        except json.JSONDecodeError as error:
            source.add(f"not JSON: {error.msg} at column {error.colno}", line)
            continue
        except (RecursionError, ValueError) as error:
            source.add(f"not usable JSON: {error}", line)
            continue
        if not isinstance(item, dict):
            source.add(f"a JSON object is needed, not {_json_kind(item)}", line)
            continue
        item = _of_a_run(item)
        if "text" not in item:
            source.add(f"no key 'text'; the keys are {', '.join(item) or 'none'}", line)
        source.check_columns(item, line)
        cells: dict[str, Cell] = {}
        for key, value in item.items():
            cell = _json_cell(key, value)
            if cell is None:
                source.add(f"{key} cannot be {_json_kind(value)}", line)
            else:
                cells[key] = cell
        if "text" in cells:
            rows.append(RawPrompt(line, cells))
    return rows


def _of_a_run(item: dict[str, object]) -> dict[str, object]:
    """A line of a run's own prompts.jsonl as one that a user would write: so a run can be made again from it."""
    settings, chosen = item.get("settings"), item.get("chosen", {})
    if not (isinstance(settings, dict) and isinstance(chosen, dict) and {"index", "refs", "videos"} <= item.keys()):
        return item
    kept = {key: value for key, value in item.items() if key in ("text", "name")}
    return kept | {"ref": item["refs"]} | chosen | settings | {"seed": item.get("seed")}


def _pairs_once(pairs: list[tuple[str, object]]) -> dict[str, object]:
    keys = [key for key, _ in pairs]
    twice = sorted({key for key in keys if keys.count(key) > 1})
    if twice:
        raise ValueError(f"keys named twice: {', '.join(twice)}")
    return dict(pairs)


def _json_cell(key: str, value: object) -> Cell | None:
    """A JSON value as the cell a csv would have; null is an empty cell; None where the key cannot hold the value."""
    if isinstance(value, str):
        return value
    if value is None and key != "text":
        return ""
    if isinstance(value, list) and key == "ref" and all(isinstance(item, str) for item in value):
        return tuple(value)
    if isinstance(value, int | float) and not isinstance(value, bool) and key not in ("text", "ref"):
        return repr(value)
    return None


def _json_kind(value: object) -> str:
    if value is None:
        return "null"
    kinds: Iterable[tuple[type, str]] = [
        (bool, "true or false"),
        (int, "a number"),
        (float, "a number"),
        (str, "a string"),
        (list, "a list"),
    ]
    return next((word for kind, word in kinds if isinstance(value, kind)), "an object")


def _txt_rows(text: str, source: _Source) -> list[RawPrompt]:
    return [RawPrompt(line, {"text": content}) for line, content in _lines(text)]


def _lines(text: str) -> list[tuple[int, str]]:
    """Lines that are not blank, numbered from 1. Only LF, CRLF and CR end a line: a prompt may hold U+2028."""
    return [(number, line) for number, line in enumerate(re.split("\r\n|\n|\r", text), start=1) if line.strip()]
