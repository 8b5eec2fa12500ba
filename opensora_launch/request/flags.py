"""Our own flags. Free text and paths come through them, so that no grammar ever reads a prompt."""

import difflib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from opensora_launch.errors import UserError
from opensora_launch.media.prompts import is_unicode
from opensora_launch.request.catalogue import keys


@dataclass(frozen=True)
class Flag:
    """`value` is the placeholder of what follows it, empty for a switch. `kinds` are the only values there are."""

    names: tuple[str, ...]
    value: str
    about: str
    repeats: bool = False
    kinds: tuple[str, ...] = ()
    unsaid: str = ""  # the value where none follows; "" requires one


@dataclass(frozen=True)
class Parsed:
    """What a command line holds: the values of each flag by its first name, and everything else in its order."""

    values: dict[str, tuple[str, ...]]
    rest: tuple[str, ...]

    def has(self, name: str) -> bool:
        return name in self.values

    def all(self, name: str) -> tuple[str, ...]:
        return self.values.get(name, ())

    def one(self, name: str) -> str | None:
        return self.values[name][-1] if name in self.values else None

    def path(self, name: str) -> Path | None:
        return None if name not in self.values else Path(self.values[name][-1])


HELP = Flag(("--help", "-h"), "", "show this text")
CONFIG_DIR = Flag(("--config-dir", "-cd"), "FOLDER", "a folder with more YAML files, for groups of your own")
GENERATE_FLAGS = (
    Flag(("--prompt",), "TEXT", "what to show; once for each video", repeats=True),
    Flag(("--prompts",), "FILE", "a csv, jsonl or txt file of prompts", repeats=True),
    Flag(("--negative-prompt",), "TEXT", "what to keep out of the pictures"),
    Flag(("--ref",), "PATH", "an image or video to start from; once for all prompts, or once each", repeats=True),
    Flag(("--resume",), "RUN", "make the videos that are missing in this run's folder"),
    Flag(("--multirun", "-m"), "", "a sweep: every combination of values such as sampling.seed=1,2 or range(1,4)"),
    Flag(("--cfg", "-c"), "WHAT", "print the config and stop", kinds=("job", "hydra", "all")),
    Flag(("--resolve",), "", "with --cfg: replace ${...} by values"),
    Flag(("--package", "-p"), "KEY", "with --cfg: only this part"),
    Flag(
        ("--info", "-i"),
        "WHAT",
        "print where the config comes from and stop",
        kinds=("all", "config", "defaults", "defaults-tree", "plugins", "searchpath"),
        unsaid="all",
    ),
    CONFIG_DIR,
    Flag(("--shell-completion", "-sc"), "bash", 'print a script: eval "$(opensora-launch --shell-completion bash)"'),
    HELP,
)
REPORT_FLAGS = (
    Flag(("--baseline",), "RUN", "the run to compare with"),
    Flag(("--usd-per-gpu-hour",), "X", "what an hour of a GPU costs, for the cost of a video"),
    Flag(("--usd-per-kwh",), "X", "what energy costs"),
    Flag(("--out",), "FOLDER", "of published figures: where their report goes; beside the file where it is not said"),
    HELP,
)
BENCH_FLAGS = (
    Flag(("--prompt",), "TEXT", "what to show; any will do", repeats=True),
    Flag(("--prompts",), "FILE", "a csv, jsonl or txt file of prompts", repeats=True),
    Flag(("--resume",), "FOLDER", "go on with a sweep that was ended"),
    CONFIG_DIR,
    HELP,
)
COMPARE_FLAGS = (Flag(("--threshold",), "PERCENT", "how much slower B may be before the exit code is 1; 5"), HELP)
TOP_FLAGS = (Flag(("--once",), "", "print it once and end"), HELP)
VERIFY_FLAGS = (
    Flag(("--case",), "FILE", "a stored case (docs/verify.md); without one the current model is checked", repeats=True),
    CONFIG_DIR,
    HELP,
)
DOCTOR_FLAGS = (
    Flag(("--quick",), "", "only what generate looks at: environment, memory, disk"),
    Flag(("--no-ranks",), "", "start no ranks: no bandwidth, no test that each sees its own GPU"),
    Flag(("--json",), "", "print one JSON document"),
    Flag(("--plot",), "FILE", "draw free memory and bandwidth: .svg, or .png and .pdf with matplotlib"),
    Flag(("--here",), "", "on a Slurm job: only this node, a line of JSON each finding"),
    CONFIG_DIR,
    HELP,
)
PLAN_FLAGS = (
    Flag(("--videos",), "N", "how many videos are made; 1 where it is not said"),
    Flag(("--json",), "", "print one JSON document"),
    Flag(("--plot",), "FILE", "draw time, memory and roofline: .svg, .png or .pdf (needs matplotlib)"),
    CONFIG_DIR,
    HELP,
)
ESTIMATE_FLAGS = (
    Flag(("--json",), "", "print one JSON document"),
    Flag(("--plot",), "FILE", "draw bars: .svg, or .png and .pdf with matplotlib"),
    CONFIG_DIR,
    HELP,
)
FLAGS: dict[str, tuple[Flag, ...]] = {
    "generate": GENERATE_FLAGS,
    "plan": PLAN_FLAGS,
    "report": REPORT_FLAGS,
    "bench": BENCH_FLAGS,
    "compare": COMPARE_FLAGS,
    "top": TOP_FLAGS,
    "verify": VERIFY_FLAGS,
    "status": (HELP,),
    "cancel": (HELP,),
    "doctor": DOCTOR_FLAGS,
    "estimate": ESTIMATE_FLAGS,
}


def parse(verb: str, flags: Sequence[Flag], argv: Sequence[str]) -> Parsed:
    """Split a command line, or raise UserError with everything that is wrong with it.

    The value of a flag is the next argument as it is, whatever it starts with, or what follows "=".
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
            problems.append(_unknown(verb, name, list(known)))
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
    if flag.unsaid and (not waiting or waiting[0] not in flag.kinds):
        return flag.unsaid
    if not waiting:
        problems.append(f"{flag.names[0]} needs a value: {flag.names[0]} {flag.value}")
        return ""
    return waiting.pop(0)


def _unknown(verb: str, name: str, known: Sequence[str]) -> str:
    """One line for a flag that there is not. A setting that was written as a flag is told its key."""
    leaf = name.lstrip("-").replace("-", "_")
    if found := [key.path for key in keys() if leaf in (key.path, key.path.rpartition(".")[2])]:
        return f"{name} is not a flag of {verb}; settings are written KEY=VALUE: {found[0]}=..."
    near = difflib.get_close_matches(name, known, n=1, cutoff=0.5)
    hint = f"did you mean {near[0]}?" if near else f"the flags are {', '.join(n for n in known if n.startswith('--'))}"
    return f"{name} is not a flag of {verb}; {hint}"
