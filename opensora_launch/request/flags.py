"""Flags of the command line. Free text and paths come through flags, so that no grammar ever reads a prompt."""

import os
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from opensora_launch.errors import UserError, did_you_mean
from opensora_launch.media.prompts import is_unicode
from opensora_launch.request.catalogue import keys


@dataclass(frozen=True)
class Flag:
    """`value` names what follows the flag in the help; it is empty for a switch."""

    names: tuple[str, ...]
    value: str
    about: str
    repeats: bool = False
    kinds: tuple[str, ...] = ()  # the only allowed values, if there are any
    default: str = ""  # the value if none follows; "" requires one. Without kinds, any word but a flag or KEY=VALUE


@dataclass(frozen=True)
class Parsed:
    """A command line: the values of each flag by its first name, and all other words in their order.

    `since_s`: when it was read, in seconds of the epoch. That is before anything slow is imported.
    """

    values: dict[str, tuple[str, ...]]
    rest: tuple[str, ...]
    since_s: float = field(default_factory=time.time, compare=False)

    def has(self, name: str) -> bool:
        return name in self.values

    def all(self, name: str) -> tuple[str, ...]:
        return self.values.get(name, ())

    def one(self, name: str) -> str | None:
        return self.values[name][-1] if name in self.values else None

    def path(self, name: str) -> Path | None:
        return None if name not in self.values else self.paths(name)[-1]

    def paths(self, name: str) -> tuple[Path, ...]:
        """Every value as a path. The shell replaces "~" only at the start of a word, so not in --prompts=~/list.csv."""
        return tuple(Path(os.path.expanduser(value)) for value in self.all(name))

    def again(self, flags: Mapping[str, Callable[[str], str]]) -> list[str]:
        """The words of these flags for another command line, each value as the function of its flag writes it."""
        return [word for name, write in flags.items() for value in self.all(name) for word in (name, write(value))]


HELP = Flag(("--help", "-h"), "", "Show this text.")
SETTINGS_HELP = Flag(("--help", "-h"), "GROUP", "Show this text, or a group's choices and keys.", default="all")
CONFIG_DIR = Flag(("--config-dir", "-cd"), "FOLDER", "Your own choices: FOLDER/GROUP/CHOICE.yaml.")
PROMPTS = Flag(("--prompts",), "FILE", "File of prompts: csv, jsonl or txt. May be repeated.", repeats=True)
# Needed to read the command line of a run again: by --resume, by a batch job, by ranks that were started by hand.
GENERATE_FLAGS = (
    Flag(("--prompt",), "TEXT", "What the video shows. Repeat it for more videos.", repeats=True),
    PROMPTS,
    Flag(("--negative-prompt",), "TEXT", "What the video must not show."),
    Flag(("--ref",), "PATH", "Image or video to start from, or one per prompt.", repeats=True),
    Flag(("--start",), "N", "Begin at prompt N of the list, counted from 0 [0]."),
    Flag(("--end",), "N", "End before prompt N, counted from 0 [all]."),
    Flag(("--name",), "TEMPLATE", "Names of videos, such as '{name}' or '{prompt}'."),
    Flag(("--output",), "DIR", "The run's folder: new or empty [a new one in runs/]."),
    Flag(("--refine-command",), "CMD", "Program that rewrites prompts, stdin to stdout."),
    Flag(("--lora",), "PATH", "LoRA to use: PATH or PATH@STRENGTH. May be repeated.", repeats=True),
    Flag(("--image-lora",), "PATH", "LoRA for the model of image=. May be repeated.", repeats=True),
    Flag(("--images-only",), "", "Stop after the first frames; --resume goes on."),
    Flag(("--strict",), "", "Refuse the list if a reference cannot be used."),
    Flag(("--resume",), "RUN", "Make what is missing in a run; latest is the newest."),
    Flag(("--multirun", "-m"), "", "Run a sweep: sampling.seed=1,2 or range(1,4)."),
    Flag(("--cfg", "-c"), "WHAT", "Print the config and exit.", kinds=("job", "hydra", "all")),
    Flag(("--resolve",), "", "With --cfg: replace ${...} by values."),
    Flag(("--package", "-p"), "KEY", "With --cfg: print only this part."),
    Flag(
        ("--info", "-i"),
        "WHAT",
        "Print where the config comes from and exit [all].",
        kinds=("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
        default="all",
    ),
    CONFIG_DIR,
    SETTINGS_HELP,
)


def parse(verb: str, flags: Sequence[Flag], argv: Sequence[str]) -> Parsed:
    """Split a command line. Raises UserError with everything that is wrong with it.

    The value of a flag is the next argument, whatever it starts with, or what follows "=".
    """
    known = {name: flag for flag in flags for name in flag.names}
    values: dict[str, tuple[str, ...]] = {}
    rest: list[str] = []
    problems = [f"{word!r} is not valid UTF-8, which every file of a run is" for word in argv if not is_unicode(word)]
    waiting = list(argv)
    while waiting:
        word = waiting.pop(0)
        name, equals, value = word.partition("=") if word.startswith("--") else (word, "", "")
        if not word.startswith("-") or word == "-":
            rest.append(word)
            continue
        flag = known.get(name)
        if flag is None:
            problems.append(_unknown_flag(verb, name, list(known)))
            continue
        if flag.value and not equals:
            value = _next_value(flag, waiting, problems)
        elif equals and not flag.value:
            problems.append(f"{name} takes no value")
        if flag.kinds and value and value not in flag.kinds:
            problems.append(f"{name} {value} is not known; use one of {', '.join(flag.kinds)}")
        first = flag.names[0]
        if first in values and flag.value and not flag.repeats:
            problems.append(f"{first} is given twice")
        values[first] = (*values.get(first, ()), value)
    if problems:
        raise UserError(f"opensora-launch {verb} cannot read this command line", problems)
    return Parsed(values, tuple(rest))


def _next_value(flag: Flag, waiting: list[str], problems: list[str]) -> str:
    if flag.default and (not waiting or not _is_value(flag, waiting[0])):
        return flag.default
    if not waiting:
        problems.append(f"{flag.names[0]} needs a value: {flag.names[0]} {flag.value}")
        return ""
    return waiting.pop(0)


def _is_value(flag: Flag, word: str) -> bool:
    return word in flag.kinds if flag.kinds else not word.startswith("-") and "=" not in word


def _unknown_flag(verb: str, name: str, known: Sequence[str]) -> str:
    """One line for a flag that does not exist. If a setting has its name, the line gives the setting's key."""
    leaf = name.lstrip("-").replace("-", "_")
    if found := [key.path for key in keys() if leaf in (key.path, key.path.rpartition(".")[2])]:
        key = min(found, key=lambda path: path.startswith("image."))  # of first frames, which few runs have
        return f"{name} is not a flag of {verb}; settings are written KEY=VALUE: {key}=..."
    flags = [flag for flag in known if flag.startswith("--")]
    hint = did_you_mean(name, [*flags, "--version"], 0.5) or f"the flags are {', '.join(flags)}"
    return f"{name} is not a flag of {verb}; {hint.replace('--version', 'opensora-launch --version')}"
