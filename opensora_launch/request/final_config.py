"""The final config of a run: what was composed, completed by the GPUs of this host. Nothing changes it afterwards."""

import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from opensora_launch.errors import UserError
from opensora_launch.machine.choose_gpus import Picked, link_of
from opensora_launch.machine.host_gpus import GpuFacts
from opensora_launch.model.lora_files import parse_lora
from opensora_launch.request.catalogue import read_cards, unknown_card
from opensora_launch.request.found_card import found_card
from opensora_launch.schema.cards import Card, joined
from opensora_launch.schema.config import Device, Link, ModelConfig, RunConfig

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
    loras: Sequence[str] = (),
    image_loras: Sequence[str] = (),
    assumed_card: Card | None = None,
) -> FinalConfig:
    """Complete a composed config.

    `here` are the GPUs that this host would use: they settle the card and the link where the user left them open. With
    `assumed_card` the ranks are GPUs, and are this card where none is named or found. `loras` and
    `image_loras` come after those of the config. Folders and the paths of LoRAs become absolute.
    """
    card, notes, problems = composed.hardware, list[str](), tuple[str, ...]()
    taken = here.gpus[: composed.topology.gpus_per_node]
    try:
        card, notes = _card(composed.hardware, taken, config_dir, assumed_card)
    except UserError as error:
        problems = error.problems or (error.title,)
    topology, sampling = composed.topology, composed.sampling
    if topology.link is Link.auto:
        topology = replace(topology, link=Link(link_of(taken, here.pairs)))
    if assumed_card:
        topology = replace(topology, device=Device.cuda)
    if negative_prompt is not None:
        sampling = replace(sampling, negative_prompt=negative_prompt)
    image_model = composed.image.model and _with_paths(composed.image.model, image_loras)
    if image_loras and image_model is None:
        problems = (*problems, "--image-lora needs a model for first frames to change: choose one, as image=flux")
    run = replace(
        composed,
        hardware=card,
        topology=topology,
        sampling=sampling,
        model=_with_paths(composed.model, loras),
        image=replace(composed.image, model=image_model),
        runs_dir=absolute(composed.runs_dir),
        text_cache=None if composed.text_cache is None else absolute(composed.text_cache),
    )
    return FinalConfig(run, "; ".join(notes), problems)


def _card(
    named: Card, gpus: Sequence[GpuFacts], config_dir: Path | None, assumed: Card | None
) -> tuple[Card, list[str]]:
    """The card of the ranks, which take `gpus`, and notes on it. One that the catalogue does not know stays unknown."""
    cards = read_cards(config_dir) if gpus or named.mixed else {}  # 25 files to read
    if unknown := [name for name in named.mixed if name not in cards]:
        raise UserError("hardware.mixed cannot be read", [unknown_card(name, sorted(cards)) for name in unknown])
    card, notes = found_card(named, gpus, cards) if gpus else (named, list[str]())
    if card.mixed and not card.others:
        card = joined([card, *(cards[name] for name in card.mixed)])
    if card.name is None and assumed:
        card = assumed
        which = "no card of the catalogue" if gpus else "no GPU"
        notes.append(f"hardware={assumed.name} is assumed: no card is named, and this machine has {which}")
    return card, notes


def _with_paths(model: ModelConfig, loras: Sequence[str]) -> ModelConfig:
    """The model with absolute paths, and with more LoRAs. The folder "package:demo/ckpts" is inside this package."""
    lora = [absolute_lora(text) for text in (*model.lora, *loras)]
    inside = str(Path(__file__).parent.parent / model.folder.removeprefix(PACKAGE))
    return replace(model, folder=inside if model.folder.startswith(PACKAGE) else absolute(model.folder), lora=lora)


def absolute_lora(text: str) -> str:
    """PATH@STRENGTH with an absolute path, also where no strength is given. A text that is wrong stays as it is."""
    try:
        lora = parse_lora(os.path.expanduser(text))
    except UserError:
        return text
    return str(replace(lora, path=Path(absolute(str(lora.path)))))


def absolute(path: str) -> str:
    return os.path.abspath(os.path.expanduser(path))
