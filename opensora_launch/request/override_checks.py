"""Find every override that cannot be used, and tell what would be right, before Hydra reads them.

Hydra stops at the first one, and answers a typing error with the advice to add a new key.
"""

import difflib
import math
import re
import shlex
from collections.abc import Callable, Iterable, Iterator, Sequence
from copy import deepcopy
from functools import cache

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override, RangeSweep
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from opensora_launch.errors import did_you_mean
from opensora_launch.request.catalogue import Key, default_choices, keys
from opensora_launch.schema.config import ImageConfig, ModelConfig, RunConfig

FEW = 4  # values of a key, which are all named besides the one that was probably meant
PROMPT_KEYS = ("prompt", "prompts", "negative_prompt", "ref", "lora", "resume")  # these are flags: free text and paths
MAX_POINTS = 1000  # of a sweep: all are composed and planned before the first starts
Choices = Callable[[str], list[str] | None]  # group -> names of its choices; None if there is no such group


def override_problems(
    overrides: Sequence[str], parser: OverridesParser, choices: Choices, *, multirun: bool
) -> list[str]:
    """One line for each override that cannot be used."""
    return [line for text in overrides for line in _problems(text, parser, choices, multirun)]


def plain_reason(error: BaseException) -> str:
    """The message of Hydra or OmegaConf in one line. If a key is wrong, the line names the allowed keys."""
    inner = error.__cause__ or error.__context__
    text = " ".join(str(error).split("\nConfig search path:")[0].split()) or type(error).__name__
    if isinstance(error, OmegaConfBaseException) and error.full_key:
        text = f"{error.full_key}: {text}"
    elif isinstance(inner, OmegaConfBaseException) and not str(inner.full_key).startswith("hydra"):
        first = str(inner).splitlines()[0]
        text = text if first in text else f"{text}: {first}"
        path = inner.full_key or str(inner.key or "")
        if path and "not in" in first and path not in _by_path():
            text = f"{text.split(': ')[0]}: {_unknown_key(path)}"
        elif path in _by_path():
            text += f"; {path} takes {_by_path()[path].kind}"
    return re.sub(r" (full_key|reference_type|object_type)[:=] ?\S+", "", text)


def _problems(text: str, parser: OverridesParser, choices: Choices, multirun: bool) -> Iterable[str]:
    try:
        (override,) = parser.parse_overrides([text])  # parse_override omits what glob() needs
    except HydraException as error:
        return [_not_parsed(text, error)]
    key = override.key_or_group
    if key in PROMPT_KEYS:
        return [_is_a_flag(text)]
    if override.is_sweep_override() and (unusable := _no_sweep(text, override, multirun)):
        return [f"{text} {unusable}"]
    if override.is_hydra_override() or override.is_delete():
        return []  # Hydra's own messages are clear there
    if not key:
        return [_no_override(text)]
    values = list(override.sweep_string_iterator()) if override.is_sweep_override() else None
    allowed = choices(key)
    if allowed is not None and override.is_add() and override.package is None and key in default_choices():
        return [f"{text}: {key} has a choice already; remove the plus"]
    if allowed is not None:
        return _wrong_choices(key, override, values, allowed)
    if override.is_add() or override.is_force_add():
        return []  # a plus adds a key of the user's own
    if not _is_key(key):
        return [f"{text}: {_unknown_key(key)}"]
    if values is None:
        return _wrong_value(text, key, override.value())
    each = [f"{key}={value}" for value in values]
    return [line for one in each for line in _wrong_value(one, key, parser.parse_override(one).value())]


def _no_sweep(text: str, override: Override, multirun: bool) -> str:
    """Why a sweep cannot be made, without listing its values."""
    if not multirun:
        return f"holds several values: add -m for a sweep over them, or quote the value: {_quoted(text)}"
    if override.is_interval_sweep():
        return "is every number between two: name some values, as in 1,1.5,2 or range(1,2,0.5)"
    swept = override.value()
    if not isinstance(swept, RangeSweep):
        return ""
    start, stop = swept.start or 0, swept.stop or 0
    points = math.ceil((stop - start) / swept.step) if swept.step else 0
    if points < 1:
        return "holds no values: range(START,STOP,STEP) ends before STOP"
    return f"holds {points} values: a sweep has {MAX_POINTS} points at most" if points > MAX_POINTS else ""


def _not_parsed(text: str, error: HydraException) -> str:
    key, equals, _ = text.partition("=")
    if not equals and not text.startswith("~"):
        return _no_override(text)
    if key in PROMPT_KEYS:
        return _is_a_flag(text)
    reason = str(error).splitlines()[0]
    return f"{text!r} cannot be read ({reason}); quote the value: {_quoted(text)}"


def _no_override(text: str) -> str:
    return f"{text!r} is neither a flag nor KEY=VALUE; a prompt follows --prompt"


def _is_a_flag(text: str) -> str:
    key, _, value = text.partition("=")
    return f"{text!r}: give it as --{key.replace('_', '-')} {value!r}; there, no character is special"


def _quoted(text: str) -> str:
    """The override with its value quoted for Hydra, and all of it for the shell."""
    key, _, value = text.partition("=")
    return shlex.quote(f"{key}={hydra_quoted(value)}")


def hydra_quoted(value: str) -> str:
    """Any text as a value of Hydra's grammar."""
    escaped = re.sub(r'(\\*)("|$)', lambda m: m[1] * 2 + ('\\"' if m[2] else ""), value).replace("${", "\\${")
    return f'"{escaped}"'


def _wrong_choices(group: str, override: Override, values: list[str] | None, allowed: Sequence[str]) -> Iterator[str]:
    value = override.value() if values is None else None
    if isinstance(value, dict):
        return
    asked = values if values is not None else value if isinstance(value, list) else [value]
    for name in asked:
        if name is None or str(name) not in allowed:
            shown = "null" if name is None else name
            near = did_you_mean(str(name), allowed, 0.5)
            yield f"{group}={shown} is not known; {near or 'use one of ' + ', '.join(allowed)}"


def _wrong_value(text: str, path: str, value: object) -> Iterator[str]:
    """A line for a value that the schema's type refuses. An interpolation is checked when it is resolved."""
    try:
        OmegaConf.update(deepcopy(_schema()), path, value, merge=True)
    except OmegaConfBaseException:
        known = _by_path().get(path)
        near = did_you_mean(str(value), known.allowed) if known and len(known.allowed) > FEW else ""
        takes = known.kind if known else f"keys: {', '.join(_keys_under(path))}"
        yield f"{text} is not known; {near}" if near else f"{text}: {path} takes {takes}"


@cache
def _schema() -> DictConfig:
    """Every key with its type, with the part that may be null."""
    schema: DictConfig = OmegaConf.structured(RunConfig(image=ImageConfig(model=ModelConfig())))
    return schema


@cache
def _by_path() -> dict[str, Key]:
    return {key.path: key for key in keys()}


def _keys_under(prefix: str) -> list[str]:
    """The names directly below a dotted prefix; "" is the root."""
    start = f"{prefix}." if prefix else ""
    return list(dict.fromkeys(k.path[len(start) :].split(".")[0] for k in keys() if k.path.startswith(start)))


def _is_key(path: str) -> bool:
    known = _by_path()
    parent = known.get(path.rpartition(".")[0])
    return path in known or bool(_keys_under(path)) or (parent is not None and isinstance(parent.default, list))


def _unknown_key(path: str) -> str:
    """What to write instead of a key that does not exist."""
    parent = path.rpartition(".")[0]
    while parent and not _keys_under(parent):
        parent = parent.rpartition(".")[0]
    every = [key.path for key in keys()]
    same_leaf = [p for p in every if p.rpartition(".")[2] == path.rpartition(".")[2]]
    near = same_leaf or difflib.get_close_matches(path, [*every, *_keys_under("")], n=1, cutoff=0.6)
    near = near or [p for p in every for leaf in [p.rpartition(".")[2]] if difflib.get_close_matches(path, [leaf], 1)]
    if near and near[0] != parent:
        return f"no such key; did you mean {near[0]}?"
    return f"no such key; {f'the keys of {parent}' if parent else 'the keys'} are {', '.join(_keys_under(parent))}"
