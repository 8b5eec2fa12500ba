"""Messages: what a report says, as codes with parameters, and their words in each language.

The words are the templates of words/LANGUAGE.json, which the page reads too. In a template `{name}` is a parameter,
`{name:.2f}` formats it, `{count?one|many}` chooses by number, and `[text]` is left out where one of its parameters is
null or empty. A parameter may be a message itself or a list of them: `{cause:title}` is its template `CODE.title`.
"""

import json
import re
from collections.abc import Mapping
from functools import cache
from importlib import resources
from typing import Any

LANGUAGES = ("en", "ko")
PARAMETER = re.compile(r"\{(\w+)(?:([:?])([^{}]*))?\}")
OPTIONAL = re.compile(r"\[([^\[\]]*)\]")
EMPTY: tuple[Any, ...] = (None, [], "")

UNITS = {"MB": 1e6, "GiB": 2**30}

Message = dict[str, Any]  # `code`, and the parameters


def message(code: str, **parameters: Any) -> Message:
    return {"code": code, **parameters}


@cache
def templates(language: str) -> Mapping[str, str]:
    """All templates of a language by code, those of messages and those of the page's labels."""
    file = resources.files("opensora_launch.report") / "words" / f"{language}.json"
    found: dict[str, dict[str, str]] = json.loads(file.read_text(encoding="utf-8"))
    return found["messages"] | found["labels"]


def say(found: Mapping[str, Any], variant: str = "", language: str = "en") -> str:
    """Word a message; `variant` chooses its template `CODE.variant` where there is one. An unknown code is its own."""
    table, code = templates(language), found["code"]
    template = table.get(f"{code}.{variant}", table.get(code, code))

    def kept(optional: re.Match[str]) -> str:
        names = [parameter[1] for parameter in PARAMETER.finditer(optional[1])]
        return "" if any(found.get(name) in EMPTY for name in names) else optional[1]

    def filled(parameter: re.Match[str]) -> str:
        name, kind, form = parameter.groups()
        return _chosen(found[name], form) if kind == "?" else _shown(found[name], form or "", language)

    return PARAMETER.sub(filled, OPTIONAL.sub(kept, template)).strip()


def label(key: str, **parameters: Any) -> str:
    """An English label of the page, for the forms that Python writes."""
    return say(message(key, **parameters))


def _chosen(value: Any, forms: str) -> str:
    one, many = forms.split("|")
    return one if (len(value) if isinstance(value, list) else value) == 1 else many


def _shown(value: Any, form: str, language: str) -> str:
    if isinstance(value, Mapping):
        return say(value, form, language)
    if isinstance(value, list):
        return ", ".join(_shown(item, form, language) for item in value)
    if form == "s":
        return f"{value:.{0 if value >= 100 else 1 if value >= 10 else 2}f}"
    if form in UNITS:
        return f"{value / UNITS[form]:.1f} {form}"
    return format(value, form) if form else str(value)
