"""`--help`: a page for each verb, and a second one for each group of settings, with the schema's own words.

Reads the YAML files and the schema, not Hydra.
"""

from collections.abc import Iterable, Iterator
from textwrap import shorten, wrap
from typing import Any

from opensora_launch import __version__
from opensora_launch.cli.terminal import StyledLine, columns
from opensora_launch.cli.verbs import VERBS
from opensora_launch.errors import UserError, did_you_mean
from opensora_launch.request.catalogue import Group, Key, about_section, as_text, config_folder, groups, keys
from opensora_launch.request.flags import Flag
from opensora_launch.schema.plain import flat

ALONE = "other"  # the topic of the keys that belong to no group
_USAGE, _TEXT = " " * 9, " " * 13  # before continued lines
_BLANK: StyledLine = [("", "")]
_LEFT = 26  # of the left column, which longer names may exceed
EXAMPLES = (
    "generate --prompt waves video=256px topology=2gpu",
    "generate --prompts list.csv video=768px topology=8gpu",
    "generate --prompt waves --ref beach.png sampling.seed=1",
    "generate --prompt waves dry_run=true",
    "generate --prompt waves -m sampling.seed=1,2,3",
    "generate --resume latest topology=4gpu",
)


def main_help() -> list[StyledLine]:
    """What `opensora-launch --help` prints."""
    about = "make videos with Open-Sora on all your GPUs, and see where each GPU's time went"
    more = [
        ("VERB --help", "Flags of a verb, and its groups of settings."),
        ("generate --help GROUP", "Choices and keys of a group, such as sampling."),
        ("--version", "Show the version."),
        ("--shell-completion bash", "Print a script for tab completion."),
    ]
    return [
        *_wrapped(f"opensora-launch {__version__}: {about}."),
        _BLANK,
        *_wrapped("usage: opensora-launch VERB [FLAGS] [GROUP=CHOICE ...] [KEY=VALUE ...]", _USAGE),
        *_part("verbs", ((name, verb.about) for name, verb in VERBS.items())),
        *_examples(),
        *_part("more", more),
        _BLANK,
        *_wrapped("Exit codes: 0 done, 1 failure, 2 mistake in the request, 75 stored and stopped, 130 Ctrl-C."),
    ]


def verb_help(name: str, topic: str | None) -> list[StyledLine]:
    """What `opensora-launch VERB --help` prints, or `--help TOPIC`."""
    verb = VERBS[name]
    if topic and topic != "all":
        return _topic_help(name, topic)
    lines = list[StyledLine]()
    for n, words in enumerate(verb.usage):
        lines += _wrapped(f"{'      ' if n else 'usage:'} opensora-launch {name} {words}", _USAGE)
    lines.append(_BLANK)
    for text in verb.text.splitlines():
        lines += _wrapped(text, _TEXT if text.startswith(" ") else "")
    lines += _part("flags", ((_names(flag), _about(flag)) for flag in verb.flags))
    if name == "generate":
        several = ((group.name, _choices(group)) for group in _groups(name) if len(group.choices) > 1)
        lines += _part("groups, as GROUP=CHOICE (* is the default)", several)
        lines += _wrapped("Without model=, the checkpoint is used if it is here, else demo or tiny.")
    if verb.settings:
        lines += [_BLANK, *_wrapped(f"keys: opensora-launch {name} --help GROUP, one of {', '.join(topics(name))}")]
    if name == "generate":
        lines += _wrapped("examples: opensora-launch --help")
    return lines


def topics(verb: str) -> list[str]:
    """What may follow a verb's --help: groups, other parts of the schema with several keys, and ALONE."""
    parts = dict.fromkeys([*(g.name for g in _groups(verb)), *(k.path.split(".")[0] for k in keys() if "." in k.path)])
    return [name for name in (*parts, ALONE) if verb == "estimate" or name != "estimate"]


def _topic_help(verb: str, topic: str) -> list[StyledLine]:
    below = f"{topic}."
    found = [k for k in keys() if ("." not in k.path if topic == ALONE else f"{k.path}.".startswith(below))]
    if not found:
        near = did_you_mean(topic, topics(verb)) or f"use one of {', '.join(topics(verb))}"
        raise UserError(f"there is no group {topic}; {near}")
    group = next((group for group in groups() if group.name == topic), None)
    about = about_section(topic) or ("Keys that belong to no group." if topic == ALONE else "")
    lines = _wrapped(f"{topic}: {about}" if about else topic)
    if group:
        rows = ((f"{c.name}{'*' if c.name == group.default else ''}", c.about) for c in group.choices)
        lines += _part(f"choices, as {topic}=CHOICE (* is the default)", rows)
    values = _default_values()
    start = "" if topic == ALONE or found[0].path == topic else f"{topic}."
    rows = ((f"{k.path.removeprefix(start)}={as_text(values.get(k.path, k.default))}", _meaning(k)) for k in found)
    return [*lines, *_part(f"keys, as {start}KEY=VALUE, with their defaults", rows)]


def _meaning(key: Key) -> str:
    """A key's meaning, then the kind of its value with the unit."""
    kind = ", ".join(key.allowed) if key.allowed else key.kind.removeprefix("one of ")
    return f"{key.meaning} [{kind}{f' in {key.unit}' if key.unit else ''}]"


def _groups(verb: str) -> list[Group]:
    return [group for group in groups() if verb == "estimate" or group.name != "estimate"]


def _choices(group: Group) -> str:
    """The choices in one line, the default first, as many as there is room for."""
    names = sorted((c.name for c in group.choices), key=lambda name: name != group.default)
    return shorten(", ".join([f"{names[0]}*", *names[1:]]), columns() - 14, placeholder=" ...")


def _names(flag: Flag) -> str:
    value = f"[{flag.value}]" if flag.default else flag.value
    return f"{', '.join(flag.names)} {value}".strip()


def _about(flag: Flag) -> str:
    return flag.about + (f" One of {', '.join(flag.kinds)}." if 0 < len(flag.kinds) < 4 else "")


def _examples() -> Iterator[StyledLine]:
    yield _BLANK
    yield [("examples:", "bold")]
    for words in EXAMPLES:
        *first, last = wrap(f"opensora-launch {words}", columns() - 4, subsequent_indent="  ", break_on_hyphens=False)
        yield from ([(f"  {line} \\", "")] for line in first)
        yield [(f"  {last}", "")]


def _part(title: str, rows: Iterable[tuple[str, str]]) -> Iterator[StyledLine]:
    """A title, and two columns, of which the right one is wrapped. A long name has lines of its own."""
    yield _BLANK
    yield from _wrapped(f"{title}:", style="bold")
    listed = list(rows)
    left = min(_LEFT, max(len(name) for name, _ in listed))
    for name, about in listed:
        texts = wrap(about, columns() - left - 4, break_on_hyphens=False) or [""]
        if len(name) <= left:
            start = f"  {name:<{left}}  "
            yield [(start.rstrip() if texts == [""] else start, "cyan"), (texts.pop(0), "")]
        else:
            yield from _wrapped(f"  {name}", "    ", "cyan")
        yield from ([(f"{'':<{left + 4}}{text}", "")] for text in texts)


def _wrapped(text: str, indent: str = "", style: str = "") -> list[StyledLine]:
    """A text that fits the terminal; `indent` is before continued lines. Blanks before its first word are kept."""
    start = text[: len(text) - len(text.lstrip())]
    rest, width = text.lstrip(), columns()
    lines = wrap(rest, width, initial_indent=start, subsequent_indent=indent, break_on_hyphens=False)
    return [[(line, style)] for line in lines]


def _default_values() -> dict[str, Any]:
    """Dotted key -> value, from the YAML files of the default choices."""
    import yaml

    found: dict[str, Any] = {}
    for group in groups():
        file = config_folder() / group.name / f"{group.default}.yaml"
        found |= dict(flat(yaml.safe_load(file.read_text(encoding="utf-8")) or {}, f"{group.name}."))
    return found
