"""`opensora-launch estimate [TOPIC]`: FLOPs, GPU-hours, energy, money, fleets, machines and cards. Needs no GPU."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from opensora_launch import __version__
from opensora_launch.cli.estimate_print import cards_text, lines_text
from opensora_launch.cli.picture import picture_file, write_bars
from opensora_launch.cli.plan import machine_asked, with_default_model
from opensora_launch.cli.terminal import show
from opensora_launch.errors import UserError, must_be_one_of
from opensora_launch.estimate import topics as topics
from opensora_launch.estimate.per_card import CardEstimate, build_of, estimate_card, has_price, rank_cards
from opensora_launch.estimate.subject import counted_subject, document_subject
from opensora_launch.media.prompts import PromptEntry, PromptSettings
from opensora_launch.plan.checks import card_problems, topology_problems
from opensora_launch.plan.networks import NETWORKS, shape_of
from opensora_launch.plan.plan import make_plan, predict
from opensora_launch.plan.rows import NUM_ROWS
from opensora_launch.plan.vaes import VAES
from opensora_launch.plan.work import Work, steps_of
from opensora_launch.request.compose import Point, compose
from opensora_launch.request.flags import Parsed
from opensora_launch.request.hardware import catalogue, look_here, settle_hardware
from opensora_launch.request.videos import ask, prompt_setting_problems
from opensora_launch.schema.config import Device, HardwareConfig, LayoutConfig, RunConfig

TOPICS = ("video", "fleet", "breakeven", "card", "build")
ASSUMED = "h100_sxm"


def estimate(parsed: Parsed) -> int:
    """Print the answer as text or JSON; 0, or 1 where no card or layout fits."""
    topic, rest = (
        (parsed.rest[0], parsed.rest[1:]) if parsed.rest and "=" not in parsed.rest[0] else ("video", parsed.rest)
    )
    folder = parsed.one("--config-dir")
    config_dir = None if folder is None else Path(folder)
    if problems := must_be_one_of("topic", topic, TOPICS):
        raise UserError("estimate cannot start", problems)
    picture = picture_file(parsed, svg_is_ours=True)
    point = compose(with_default_model(rest), multirun=False, config_dir=config_dir).points[0]
    run, cards = point.run, catalogue(config_dir)
    note = _settle(run, cards, config_dir)
    _check(run, topic)
    if topic == "card":
        return _cards(parsed, picture, _work(point), rank_cards_of(point, cards))
    lines = list(_lines(topic, point))
    if parsed.has("--json"):
        values = {line.key: line.value for line in lines}
        how = {line.key: line.how for line in lines if line.how}
        _print_json(topic, run, {"values": values, "how": how})
    else:
        show(lines_text(lines, f"{topic}: {note}" if note else topic))
    if picture:
        shown = [(line.label, float(line.value), line.unit) for line in lines if isinstance(line.value, (int, float))]
        write_bars(picture, topic, shown)
    return 0


def rank_cards_of(point: Point, cards: dict[str, HardwareConfig]) -> list[CardEstimate]:
    """Every card of the catalogue for this video, in the order that estimate.card_order asks for."""
    run, work = point.run, _work(point)
    fixed = LayoutConfig(**vars(run.layout))
    return rank_cards(
        [estimate_card(work, fixed, card, run.estimate) for card in cards.values()], run.estimate.card_order
    )


def _settle(run: RunConfig, cards: dict[str, HardwareConfig], config_dir: Path | None) -> str:
    """The card: named, found here, or assumed and said so."""
    here = look_here(run)
    notes = [*here.lines, settle_hardware(run, here, config_dir)]
    if run.hardware.name is None:
        run.hardware = cards[ASSUMED]
        notes.append(
            f"hardware={ASSUMED} is assumed: none is named and none {'that is known ' if here.gpus else ''}is here"
        )
    run.topology.device = Device.cuda
    return "; ".join(filter(None, notes))


def _check(run: RunConfig, topic: str) -> None:
    prices = run.estimate
    problems = topics.estimate_problems(prices) + prompt_setting_problems(run)
    problems += topology_problems(run.topology) + card_problems(run.hardware)
    if prices.network is not None:
        problems += must_be_one_of("estimate.network", prices.network, tuple(NETWORKS))
    if topic == "breakeven" and not prices.training_flops:
        problems.append(
            "what training took is not known: estimate.training_flops=[1e21], or estimate=dit_xl or estimate=sora"
        )
    if topic == "fleet" and prices.output_s == 0:
        problems.append("a fleet is for minutes of video, and this output is an image (estimate.output_s=0)")
    if problems:
        raise UserError("this cannot be estimated", problems)


def _work(point: Point) -> Work:
    """One text-to-video request on the machine asked for; of another network, with its own tokens, VAE, rows and steps.

    Open-Sora's other networks take the run's steps: of their three guidance rows only those that count.
    """
    run = point.run
    machine = machine_asked(run, 0)
    videos = ask([PromptEntry(0, "a video", (), PromptSettings(), "estimate")], [(0, point)]).videos[:1]
    card, run.hardware = run.hardware, HardwareConfig()
    make_plan(run, machine, videos, __version__)  # refuses what is wrong apart from memory
    run.hardware = card
    work, _ = predict(run, machine, videos)
    if run.estimate.network is None:
        return work
    net = NETWORKS[run.estimate.network]
    size = work.video
    shape = shape_of(net, size.width_px, size.height_px, size.num_frames)
    steps = work.steps if net.rows == NUM_ROWS else steps_of([net.rows] * net.steps)
    if net.vae != work.net.vae:
        size = replace(size, tile_px=VAES[net.vae].tile_px, tile_frames=None)
    return replace(work, net=net, shape=shape, steps=steps, video=size)


def _lines(topic: str, point: Point) -> Sequence[topics.Line]:
    run, prices = point.run, point.run.estimate
    gpus = run.topology.gpus_per_node or 1
    machine, priced = build_of(run.hardware, gpus, prices), has_price(run.hardware, prices)
    if topic == "build":
        return tuple(topics.build(machine, prices, priced=priced))
    if prices.flops_per_step is not None:
        subject = document_subject(run.hardware, prices)
    else:
        subject = counted_subject(_work(point), LayoutConfig(**vars(run.layout)), prices, run.video.fps)
    if topic == "fleet":
        return tuple(topics.fleet(subject, prices))
    return tuple(topics.video(subject) if topic == "video" else topics.breakeven(subject, prices))


def _cards(parsed: Parsed, picture: Path | None, work: Work, found: list[CardEstimate]) -> int:
    if parsed.has("--json"):
        _print_json("card", None, {"cards": [_card_json(one) for one in found]})
    else:
        show(cards_text(found, work))
    if picture:
        times = [(str(one.card.name), one.seconds, "s a video") for one in found if one.seconds is not None]
        memory = [(str(one.card.name), one.peak_gib, "GiB a GPU") for one in found]
        write_bars(picture, "predicted time and memory", [*times, *memory])
    return 0 if any(one.seconds is not None for one in found) else 1


def _card_json(one: CardEstimate) -> dict[str, Any]:
    return {
        "card": one.card.name,
        "gpus": one.gpus,
        "fits": one.seconds is not None,
        "how": one.how,
        "memory_gib": one.card.memory_gib,
        "peak_gib": one.peak_gib,
        "seconds": one.seconds,
        "kwh": one.cost.kwh if one.cost else None,
        "usd": one.usd,
        "watts": one.watts,
        "price_usd": one.card.price_usd,
    }


def _print_json(topic: str, run: RunConfig | None, content: dict[str, Any]) -> None:
    about = {"hardware": run.hardware.name} if run else {}
    document = {"schema": 1, "version": __version__, "topic": topic, **about, **content}
    print(json.dumps(document, ensure_ascii=False, indent=1))
