"""`--help`: verbs, flags, groups with their choices, keys with their defaults. Reads the YAML files, not Hydra."""

from collections.abc import Iterable, Iterator
from textwrap import fill
from typing import Any

from opensora_launch import __version__
from opensora_launch.cli.verbs import VERBS
from opensora_launch.request.catalogue import Key, as_text, config_folder, groups, keys
from opensora_launch.request.flags import Flag

WIDTH = 100
EXAMPLES = """\
opensora-launch generate --prompt "raining, sea" video=256px topology=2gpu
opensora-launch generate --prompts list.csv video=768px topology=8gpu
opensora-launch generate --prompt "waves" --ref beach.png sampling.num_steps=30
opensora-launch generate --prompt "a cat's eye" video=custom video.width_px=512 video.height_px=320 topology=cpu2
opensora-launch generate --prompt "waves" dry_run=true             print the plan and the command, start nothing
opensora-launch generate --prompt "waves" -m sampling.seed=1,2,3   a sweep; one run, because only seeds differ
opensora-launch generate --resume runs/20260131-120000 topology=4gpu
opensora-launch verify topology=cpu4 layout.ring=2                 compare a video made on 4 ranks and on one"""


def main_help() -> str:
    """What `opensora-launch --help` prints."""
    return f"""\
opensora-launch {__version__}: make videos with Open-Sora on all your GPUs, and see where each GPU's time went.

usage: opensora-launch VERB [FLAGS] [GROUP=CHOICE ...] [KEY=VALUE ...]

verbs (opensora-launch VERB --help):
{_columns((name, verb.about) for name, verb in VERBS.items())}

examples:
{_indent(EXAMPLES)}

config groups of generate, as GROUP=CHOICE (* is the default):
{_groups()}

All keys with their defaults: opensora-launch generate --help.
Other flags: --version; --shell-completion bash prints a completion script.
Exit codes: 0 done, 1 failure, 2 mistake in the request, 75 stored and stopped, 130 Ctrl-C."""


def verb_help(name: str) -> str:
    """What `opensora-launch VERB --help` prints."""
    verb = VERBS[name]
    usage = "\n".join(
        f"{'usage:' if n == 0 else '      '} opensora-launch {name} {words}" for n, words in enumerate(verb.usage)
    )
    flags = _columns(
        (", ".join(flag.names) + (f" {flag.value}" if flag.value else ""), _about(flag)) for flag in verb.flags
    )
    parts = [usage, _wrapped(verb.text), f"flags:\n{flags}"]
    if name == "generate":
        parts.append(
            f"groups, as GROUP=CHOICE (* is the default):\n{_groups()}\n"
            "Without model=..., the checkpoint is used if it is here, else demo or tiny."
        )
        parts.append(f"keys, as KEY=VALUE, with the defaults of the default choices:\n{_keys()}")
        parts.append(f"examples:\n{_indent(EXAMPLES)}")
    return "\n\n".join(parts)


def _wrapped(text: str) -> str:
    """Wrap the lines of a text, except indented ones."""
    return "\n".join(line if line.startswith(" ") else fill(line, WIDTH) for line in text.splitlines())


def _indent(text: str) -> str:
    return "\n".join(f"  {line}" for line in text.splitlines())


def _columns(rows: Iterable[tuple[str, str]]) -> str:
    listed = list(rows)
    width = max(len(left) for left, _ in listed)
    return "\n".join(f"  {left:<{width}}  {right}".rstrip() for left, right in listed)


def _about(flag: Flag) -> str:
    return flag.about + (f": {', '.join(flag.kinds)}." if flag.kinds else "")


def _groups() -> str:
    return "\n".join(
        f"  {group.name}\n"
        + _indent(_columns((f"{c.name}{'*' if c.name == group.default else ''}", c.about) for c in group.choices))
        for group in groups()
    )


def _keys() -> str:
    chosen = _default_values()
    return _columns((f"{key.path}={as_text(chosen.get(key.path, key.default))}", _kind(key)) for key in keys())


def _kind(key: Key) -> str:
    return key.kind.replace("one of ", "") if key.allowed else key.kind


def _default_values() -> dict[str, Any]:
    """Dotted key -> value, from the YAML files of the default choices."""
    import yaml

    found: dict[str, Any] = {}
    for group in groups():
        file = config_folder() / group.name / f"{group.default}.yaml"
        found |= dict(_flat(yaml.safe_load(file.read_text(encoding="utf-8")) or {}, f"{group.name}."))
    return found


def _flat(values: dict[str, Any], prefix: str) -> Iterator[tuple[str, Any]]:
    for key, value in values.items():
        if isinstance(value, dict):
            yield from _flat(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}", value
