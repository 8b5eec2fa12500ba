"""Call Hydra once: overrides and YAML files become a checked RunConfig for one run, or for each point of a sweep."""

import itertools
import math
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stdout
from dataclasses import dataclass
from functools import cache
from io import StringIO
from pathlib import Path
from typing import cast

from hydra import version
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.hydra import Hydra
from hydra._internal.sources_registry import SourcesRegistry
from hydra._internal.utils import create_config_search_path
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.object_type import ObjectType
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.types import RunMode
from omegaconf import OmegaConf, open_dict
from omegaconf.errors import OmegaConfBaseException

from opensora_launch.errors import UserError
from opensora_launch.request.catalogue import DEFAULT_MODEL, config_folder, groups
from opensora_launch.request.flags import Parsed
from opensora_launch.request.override_checks import MAX_POINTS, override_problems, plain_reason
from opensora_launch.request.text_source import SCHEME, TextSource, text_overrides
from opensora_launch.schema.config import RunConfig

CONFIG_NAME = "config"
VERSION_BASE = "1.3"


@dataclass(frozen=True)
class ConfigPoint:
    """One point of a sweep, or the only one. `swept` are the overrides among `overrides` that the sweep chose."""

    overrides: tuple[str, ...]
    swept: tuple[str, ...]
    run: RunConfig
    number: int = 0  # in the sweep


@dataclass(frozen=True)
class Composed:
    """All points, and a note on the model if the user named none (else empty)."""

    points: tuple[ConfigPoint, ...]
    model_note: str


@cache
def _register_once() -> None:
    """Tell Hydra, whose registries are the process's, of the schema and of the source of the YAML files."""
    version.setbase(VERSION_BASE)
    ConfigStore.instance().store("schema", RunConfig)
    SourcesRegistry.instance().register(TextSource)


@contextmanager
def hydra_session(config_dir: Path | None) -> Iterator[Hydra]:
    """Hydra with this package's schema and YAML files; `config_dir` is a folder with the user's own."""
    if config_dir is not None and not config_dir.is_dir():
        raise UserError(f"--config-dir {config_dir}: no such folder")
    _register_once()
    path = create_config_search_path(f"{SCHEME}://{config_folder()}")
    if config_dir is not None:
        path.prepend("command-line", f"{SCHEME}://{config_dir.absolute()}", anchor="schema")
    GlobalHydra.instance().clear()
    try:
        yield Hydra.create_main_hydra2("opensora-launch", path)
    finally:
        GlobalHydra.instance().clear()


def compose(overrides: Sequence[str], *, multirun: bool = False, config_dir: Path | None = None) -> Composed:
    """The config of every point. Raises UserError with every override that is wrong."""
    with hydra_session(config_dir) as hydra:
        overrides, note = with_model(hydra, text_overrides(overrides), config_dir)
        expanded = enumerate(_expand(hydra, overrides, multirun))
        points = (ConfigPoint(texts, swept, _compose_one(hydra, texts), number) for number, (texts, swept) in expanded)
        return Composed(tuple(points), note)


def shown_config(words: Parsed, asked: Parsed) -> tuple[str, str]:
    """What --cfg or --info of `asked` shows of the config of `words`, and the note on the model.

    That is the config as YAML, of every point of a sweep, or Hydra's own account of where it comes from.
    """
    config_dir, multirun = words.path("--config-dir"), asked.has("--multirun")
    with hydra_session(config_dir) as hydra, redirect_stdout(StringIO()) as text:  # Hydra prints it
        overrides, note = with_model(hydra, text_overrides(words.rest), config_dir)
        if kind := asked.one("--cfg"):
            package = asked.one("--package")
            for texts, swept in _expand(hydra, overrides, multirun):
                _check_package(hydra, texts, package)
                if swept:
                    text.write(f"---\n# {' '.join(swept)}\n")
                with _as_user_error():
                    hydra.show_cfg(CONFIG_NAME, list(texts), kind, package, asked.has("--resolve"))
        else:
            info, mode = asked.one("--info") or "all", RunMode.MULTIRUN if multirun else RunMode.RUN
            with _as_user_error():
                hydra.show_info(info, CONFIG_NAME, list(overrides), mode)
        return text.getvalue(), note


def _check_package(hydra: Hydra, overrides: Sequence[str], package: str | None) -> None:
    if package in (None, "_global_"):
        return
    with _as_user_error():
        config = hydra.compose_config(CONFIG_NAME, list(overrides), RunMode.RUN)
    if OmegaConf.select(config, package) is None:
        raise UserError(f"--package {package}: there is no such part of the config, or it is null")


def with_model(hydra: Hydra, overrides: Sequence[str], config_dir: Path | None) -> tuple[tuple[str, ...], str]:
    """Add a model that can run here if the user named none; return the overrides and a note that says why.

    That is Open-Sora's checkpoint if its file is here, else the small trained model if this installation has it, else
    the tiny model with random weights.
    """
    parser = OverridesParser.create()
    try:
        if any(parser.parse_override(text).key_or_group == "model" for text in overrides):
            return tuple(overrides), ""
        own = [text for text in overrides if text.startswith("model.")]
        model = _compose_one(hydra, own).model if own or config_dir else RunConfig().model  # as config.yaml has it
    except (HydraException, UserError):
        return tuple(overrides), ""  # the checks that follow explain it
    missing = Path(model.folder) / RunConfig().model.mmdit_file
    if missing.exists() or missing.with_name(f"{missing.name}.index.json").exists():
        return (f"model={DEFAULT_MODEL}", *overrides), ""
    here = {choice.name for group in groups([config_dir] if config_dir else []) for choice in group.choices}
    small = "demo" if "demo" in here else "tiny"
    note = f"model={small} is used: there is no {missing} (model={DEFAULT_MODEL} says how to download it)"
    return (f"model={small}", *overrides), note


def _expand(
    hydra: Hydra, overrides: Sequence[str], multirun: bool
) -> Iterator[tuple[tuple[str, ...], tuple[str, ...]]]:
    """Yield (all overrides, the overrides that the sweep chose) for every point."""
    loader = hydra.config_loader
    parser = OverridesParser.create(config_loader=loader)
    search = [text for text in overrides if text.startswith("hydra.searchpath=")]  # folders with more choices

    def choices(group: str) -> list[str] | None:
        if not search and isinstance(loader, ConfigLoaderImpl):  # the public method gives the same but copies a lot
            return loader.repository.get_group_options(group, ObjectType.CONFIG) or None
        return loader.get_group_options(group, config_name=CONFIG_NAME, overrides=search) or None

    if problems := override_problems(overrides, parser, choices, multirun=multirun):
        raise UserError("these overrides cannot be used", problems)
    options: list[list[tuple[str, bool]]] = []
    for text, override in zip(overrides, parser.parse_overrides(list(overrides)), strict=True):
        if override.is_sweep_override():
            key = override.get_key_element()
            values = [f"{key}={value}" for value in override.sweep_string_iterator()]
            options.append([(value, True) for value in text_overrides(values)])  # again, because choice() unquotes
        else:
            options.append([(text, False)])
    if (points := math.prod(map(len, options))) > MAX_POINTS:
        raise UserError(f"this sweep has {points} points, but {MAX_POINTS} is the most; for more, use a prompt file")
    for chosen in itertools.product(*options):
        yield tuple(text for text, _ in chosen), tuple(text for text, swept in chosen if swept)


def _compose_one(hydra: Hydra, overrides: Sequence[str]) -> RunConfig:
    with _as_user_error():
        config = hydra.compose_config(CONFIG_NAME, list(overrides), RunMode.RUN)
        with open_dict(config):
            del config["hydra"]
        return cast(RunConfig, OmegaConf.to_object(config))


@contextmanager
def _as_user_error() -> Iterator[None]:
    """Turn what Hydra finds after our own checks, such as a mistake in a YAML file, into a UserError of one line."""
    from yaml import YAMLError

    try:
        yield
    except (HydraException, OmegaConfBaseException, YAMLError, OSError, ValueError) as error:
        raise UserError("this config cannot be composed", [plain_reason(error)]) from error
