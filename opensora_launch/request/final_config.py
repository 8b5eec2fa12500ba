"""The final config of a run: what was composed, completed by the GPUs of this host. Nothing changes it afterwards."""

import os
from dataclasses import dataclass, replace
from pathlib import Path

from opensora_launch.errors import UserError
from opensora_launch.machine.choose_gpus import Picked, link_of
from opensora_launch.request.catalogue import match, read_cards, unknown_card
from opensora_launch.schema.cards import Card, slowest
from opensora_launch.schema.config import Device, Link, RunConfig

PACKAGE = "package:"  # starts a model.folder inside this package, wherever it is installed


@dataclass(frozen=True)
class FinalConfig:
    """A config with everything that a plan reads. `note` says how its card was found, if the user did not name one."""

    run: RunConfig
    note: str
    problems: tuple[str, ...]


def final_config(
    composed: RunConfig,
    here: Picked,
    config_dir: Path | None = None,
    *,
    negative_prompt: str | None = None,
    assumed_card: str | None = None,
) -> FinalConfig:
    """Complete a composed config.

    `here` are the GPUs that this host would use: they settle the card and the link where the user left them open. With
    `assumed_card` the ranks are GPUs, and are this card where none is named or found. Folders become absolute.
    """
    card, notes, problems = composed.hardware, list[str](), tuple[str, ...]()
    try:
        card, notes = _card(composed.hardware, here, config_dir, assumed_card)
    except UserError as error:
        problems = error.problems or (error.title,)
    topology, sampling = composed.topology, composed.sampling
    if topology.link is Link.auto:
        topology = replace(topology, link=Link(link_of(here.gpus[: topology.gpus_per_node], here.pairs)))
    if assumed_card:
        topology = replace(topology, device=Device.cuda)
    if negative_prompt is not None:
        sampling = replace(sampling, negative_prompt=negative_prompt)
    run = replace(
        composed,
        hardware=card,
        topology=topology,
        sampling=sampling,
        model=replace(composed.model, folder=weights_folder(composed.model.folder)),
        runs_dir=absolute(composed.runs_dir),
        text_cache=None if composed.text_cache is None else absolute(composed.text_cache),
    )
    return FinalConfig(run, "; ".join(notes), problems)


def _card(named: Card, here: Picked, config_dir: Path | None, assumed: str | None) -> tuple[Card, list[str]]:
    """The card of the ranks, and notes on it. A card that the catalogue does not know stays unknown."""
    find = named.name is None and bool(here.gpus or assumed)
    cards = read_cards(config_dir) if find or named.mixed else {}  # 23 files to read
    card, notes = named, list[str]()
    if named.name is None and here.gpus:
        names = list(dict.fromkeys(here.names))
        found = [match(name, cards) for name in names]
        if None in found:
            notes.append(f"{', '.join(names)}: not in configs/hardware, so layouts are chosen by rule")
        else:
            card = slowest([one for one in found if one])
            notes.append(f"hardware={card.name}, found here")
    if card.mixed:
        if unknown := [name for name in card.mixed if name not in cards]:
            raise UserError("hardware.mixed cannot be read", [unknown_card(name, sorted(cards)) for name in unknown])
        card = slowest([card, *(cards[name] for name in card.mixed)])
    if card.name is None and assumed:
        card = cards[assumed]
        which = "no card of the catalogue" if here.gpus else "no GPU"
        notes.append(f"hardware={assumed} is assumed: no card is named, and this machine has {which}")
    return card, notes


def weights_folder(folder: str) -> str:
    """The absolute path of a model's folder. "package:demo/ckpts" is inside this package."""
    if folder.startswith(PACKAGE):
        return str(Path(__file__).parent.parent / folder.removeprefix(PACKAGE))
    return absolute(folder)


def absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))
