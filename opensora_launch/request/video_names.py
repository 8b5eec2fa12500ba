"""Names of videos, by a template of the user's, for every file system: Linux, Windows, macOS and network shares.

Names are decided for the whole list of prompts, before any slice of it is taken. So machines that share a list, and
runs that are resumed, agree on them.
"""

import re
import unicodedata
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from string import Formatter

FIELDS = ("name", "prompt", "index", "sample", "seed")
NAME_BYTES = 200  # a file's name has 255 at most; the rest is for its suffix and for what a user may add
MOST_CHARS = 5 * NAME_BYTES  # of a prompt that are looked at
_DIGITS = 4  # of a prompt's number, at least: then the files are in order
_SPECS = re.compile(r"|0?[0-9]{1,2}d?|\.[0-9]{1,3}s?")
_FORBIDDEN = re.compile(r'[<>:"/\\|?*]')  # on Windows; the slash everywhere
_RESERVED = re.compile(r"(?i)(con|prn|aux|nul|conin\$|conout\$|(com|lpt)[0-9¹²³]) *(\.|$)")  # devices of Windows
_JOINERS = "\u200c\u200d"  # which emoji and some scripts need
_Part = tuple[str, str | None, str | None, str | None]  # of a template: text, field, format, conversion
_SHEET = ".sheet"  # ends the name of a contact sheet: NAME.sheet.png


@dataclass(frozen=True)
class Nameable:
    """What the name of a video may be made of. `name` is the prompt's own; None if it has none."""

    index: int
    sample: int
    name: str | None
    prompt: str
    seed: int


def template_problems(template: str, *, named: bool = True) -> list[str]:
    """One line if a template cannot be used; `named`: whether a prompt has a name of its own."""
    allowed = ", ".join(f"{{{field}}}" for field in FIELDS)
    try:
        parts = list(Formatter().parse(template))
    except ValueError as error:
        return [f"--name {template}: {error}; write a brace that is text twice, as in {{{{"]
    for text, field, spec, conversion in parts:
        if separators := re.findall(r"[/\\]", text):
            return [f"--name {template}: no file's name can hold {separators[0]}; --output DIR sets the folder"]
        if field is None:
            continue
        if field not in FIELDS or conversion:
            written = field + (f"!{conversion}" if conversion else "")
            return [f"--name {template}: there is no field {{{written}}}; the fields are {allowed}"]
        is_text = field in ("name", "prompt")  # which takes a length, and a number takes a width
        if not _SPECS.fullmatch(spec or "") or (spec and spec.startswith(".") != is_text):
            return [f"--name {template}: {{{field}:{spec}}} is not possible; use {{index:06}} or {{prompt:.40}}"]
    if not named and any(field == "name" for _, field, _, _ in parts):
        return [f"--name {template}: no prompt has a name; prompt files may have a column 'name', or use {{prompt}}"]
    return [] if template.strip() else ["--name is empty; give a template such as '{name}'"]


def video_names(template: str | None, videos: Sequence[Nameable]) -> list[str]:
    """The name of each video: "<number>_<sample>" without a template. No two are equal, whatever their case.

    A template without {sample} and {seed} gets "_{sample}" where a prompt has several. A prompt without a name of its
    own has its number as its name. Names that would be equal get "_<number>_<sample>" at their end.
    """
    most = max((video.sample for video in videos), default=0)
    widths = {"index": max(_DIGITS, len(str(max((v.index for v in videos), default=0)))), "sample": len(str(most))}
    numbers = [f"{video.index:0{widths['index']}d}_{video.sample:0{widths['sample']}d}" for video in videos]
    if template is None:
        return numbers
    parts = list(Formatter().parse(template))
    if most and not {"sample", "seed"} & {field for _, field, _, _ in parts}:
        parts.append(("_", "sample", "", None))
    names = [_filled(parts, video, widths) or number for video, number in zip(videos, numbers, strict=True)]
    return _distinct(names, numbers)


def _filled(parts: Sequence[_Part], video: Nameable, widths: Mapping[str, int]) -> str:
    """The template with the values of a video. If that is too long, the prompt is cut, then the name, then the rest."""
    values = dict[str, str]()
    for _, field, spec, _ in parts:
        if field:
            values[f"{field}:{spec}"] = _value(field, spec or "", video, widths)
    for cut in ("prompt", "name"):
        spare = len(_joined(parts, values).encode()) - NAME_BYTES
        for key, value in values.items() if spare > 0 else ():
            if key.partition(":")[0] == cut:
                values[key] = cut_to(value, max(0, len(value.encode()) - spare))
    return safe_name(_joined(parts, values))


def _joined(parts: Sequence[_Part], values: Mapping[str, str]) -> str:
    return "".join(text + (values[f"{field}:{spec}"] if field else "") for text, field, spec, _ in parts)


def _value(field: str, spec: str, video: Nameable, widths: Mapping[str, int]) -> str:
    number = f"{video.index:0{widths['index']}d}"
    if field in ("name", "prompt"):
        text = video.prompt if field == "prompt" else video.name or number
        return _plain(format(text[:MOST_CHARS], spec)).strip()
    value = getattr(video, field)
    return format(value, spec or (f"0{widths[field]}d" if field in widths else ""))


def _distinct(names: Sequence[str], numbers: Sequence[str]) -> list[str]:
    """The names, with their numbers at the end of those that are equal: all of them, so that their order is no matter.

    An end makes a name equal to another one only where that other one is written like it; then that gets an end too.
    """
    made, ended = list(names), set[int]()
    while True:
        same = defaultdict[str, list[int]](list)
        for place, name in enumerate(made):
            same[unicodedata.normalize("NFC", name.casefold())].append(place)
        equal = {place for places in same.values() if len(places) > 1 for place in places} - ended
        if not equal:
            return made
        ended |= equal
        for place in equal:
            end = f"_{numbers[place]}"
            made[place] = cut_to(made[place], NAME_BYTES - len(end)) + end


def safe_name(text: str) -> str:
    """A text as the name of a file without its suffix, on any file system; "" if nothing is left of it."""
    name = _plain(text).lstrip(" .-")
    name = cut_to(f"_{name}" if _RESERVED.match(name) else name, NAME_BYTES).rstrip(" .")
    return f"{name[: -len(_SHEET)]}_{_SHEET[1:]}" if name.lower().endswith(_SHEET) else name


def _plain(text: str) -> str:
    """A text without what no file's name can hold: one blank for white space, "_" for forbidden characters."""
    return unicodedata.normalize("NFC", re.sub(" +", " ", "".join(map(_kept, text))))


@lru_cache(maxsize=8192)
def _kept(char: str) -> str:
    """What stays of a character."""
    kind = unicodedata.category(char)
    if kind in ("Cc", "Zl", "Zp", "Zs"):
        return " "
    if kind == "Cf" and char not in _JOINERS:  # turns the order of letters, or is not seen
        return ""
    return "_" if kind in ("Cn", "Cs") or _FORBIDDEN.match(char) else char


def cut_to(text: str, most_bytes: int) -> str:
    """The text cut to so many bytes of UTF-8, not between a letter and its accent."""
    cut = text.encode()[:most_bytes].decode(errors="ignore")
    while cut and len(cut) < len(text) and (unicodedata.combining(text[len(cut)]) or text[len(cut)] in _JOINERS):
        cut = cut[:-1]
    return cut.rstrip(" .") if len(cut) < len(text) else text
