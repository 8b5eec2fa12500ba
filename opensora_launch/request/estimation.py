"""What `estimate` answers: a topic, with the final config and the work that it counts."""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from opensora_launch import __version__
from opensora_launch.errors import Problems, UserError, must_be_one_of
from opensora_launch.estimate import figures
from opensora_launch.estimate.card_ranking import CardEstimate, build_of, estimate_card, has_price, rank_cards
from opensora_launch.estimate.figures import Figure
from opensora_launch.estimate.subject import counted_subject, document_subject
from opensora_launch.plan.checks import card_problems, prediction_problems, topology_problems
from opensora_launch.plan.make_plan import make_plan, predict, products_of
from opensora_launch.plan.networks import NETWORKS, VAES, token_grid
from opensora_launch.plan.rows import NUM_ROWS
from opensora_launch.plan.workload import Workload, steps_of
from opensora_launch.request.catalogue import read_cards
from opensora_launch.request.compose import compose
from opensora_launch.request.flags import Parsed
from opensora_launch.request.predicted_layouts import requested_machine, run_to_predict, videos_like, with_default_model
from opensora_launch.request.videos import prompt_setting_problems
from opensora_launch.schema.cards import Card
from opensora_launch.schema.config import RunConfig

TOPICS = ("video", "fleet", "breakeven", "card", "build")
ASSUMED_CARD = "h100_sxm"
NO_TRAINING = (
    "the FLOPs of training are not known: give estimate.training_flops=[1e21], estimate=dit_xl or estimate=sora"
)


@dataclass(frozen=True)
class EstimateRequest:
    """A topic with the config to answer it from; `note` tells where the card comes from."""

    topic: str
    run: RunConfig
    cards: Mapping[str, Card]
    note: str


def prepare_estimate(parsed: Parsed) -> EstimateRequest:
    """Read a command line of `estimate`. Raises UserError with everything that is wrong with it."""
    named = bool(parsed.rest) and "=" not in parsed.rest[0]
    topic, words = (parsed.rest[0], parsed.rest[1:]) if named else ("video", parsed.rest)
    if wrong := must_be_one_of("topic", topic, TOPICS):
        raise UserError("estimate cannot start", wrong)
    config_dir, problems = parsed.path("--config-dir"), Problems()
    composed = compose(with_default_model(words), config_dir=config_dir).points[0].run
    cards = read_cards(config_dir)
    asked = run_to_predict(composed, config_dir, cards[ASSUMED_CARD])
    run, prices = asked.run, asked.run.estimate
    problems.add([*asked.problems, *figures.estimate_problems(prices), *prompt_setting_problems(run)])
    problems.add([*topology_problems(run.topology), *card_problems(run.hardware)])
    as_composed = replace(run, topology=replace(run.topology, link=composed.topology.link))
    problems.add(prediction_problems(as_composed))
    if prices.network is not None:
        problems.add(must_be_one_of("estimate.network", prices.network, tuple(NETWORKS)))
    if topic == "breakeven" and not prices.training_flops:
        problems.add([NO_TRAINING])
    images = {"estimate.output_s=0": prices.output_s == 0, "video.num_frames=1": run.video.num_frames == 1}
    if topic == "fleet" and (why := next((key for key, is_image in images.items() if is_image), "")):
        problems.add([f"a fleet is for minutes of video, and this output is an image ({why})"])
    problems.stop("this cannot be estimated")
    steps_named = any(word.lstrip("+~").startswith(("sampling.num_steps=", "sampling=")) for word in words)
    if prices.network is not None and not steps_named:
        run = replace(run, sampling=replace(run.sampling, num_steps=NETWORKS[prices.network].steps))
    if topic == "card":  # the links that are here are not those of other cards
        run = replace(run, topology=as_composed.topology)
    note = "; ".join(filter(None, [*asked.found_here, asked.note]))
    return EstimateRequest(topic, run, cards, note)


def ranked_cards(asked: EstimateRequest) -> tuple[Workload, list[CardEstimate]]:
    """The counted video, and every card of the catalogue for it, in the order of estimate.card_order."""
    run, work = asked.run, counted_work(asked.run)
    machine = requested_machine(run)
    found = []
    for card in asked.cards.values():
        of_card = replace(work, card=card, products=products_of(replace(run, hardware=card), machine))
        found.append(estimate_card(of_card, run.layout, run.estimate))
    return work, rank_cards(found, run.estimate.card_order)


def answer(asked: EstimateRequest) -> list[Figure]:
    """The figures of every topic except "card"."""
    run, prices = asked.run, asked.run.estimate
    if asked.topic == "build":
        machine = build_of(run.hardware, run.topology.gpus_per_node or 1, prices)
        return list(figures.machine_figures(machine, prices, priced=has_price(run.hardware, prices)))
    if prices.flops_per_step is not None:
        subject = document_subject(run.hardware, prices)
    else:
        subject = counted_subject(counted_work(run), run.layout, prices, run.video.fps)
    if asked.topic == "fleet":
        return list(figures.fleet_figures(subject, prices))
    if asked.topic == "breakeven":
        return list(figures.break_even_figures(subject, prices))
    return list(figures.video_figures(subject))


def counted_work(run: RunConfig) -> Workload:
    """One text-to-video request on the requested machine.

    With estimate.network it is that network's, with its own tokens, VAE and rows. Open-Sora's other networks
    take the steps of the run: of their three guidance rows only those that count.
    """
    machine, videos = requested_machine(run), videos_like(run)[:1]
    make_plan(run, machine, videos, __version__, by_rule=True)  # refuses what is wrong apart from memory
    work, _ = predict(run, machine, videos)
    if run.estimate.network is None:
        return work
    net = NETWORKS[run.estimate.network]
    size = work.video
    grid = token_grid(net, size.width_px, size.height_px, size.num_frames)
    steps = work.steps if net.rows == NUM_ROWS else steps_of([net.rows] * run.sampling.num_steps)
    if net.vae != work.net.vae:
        size = replace(size, tile_px=VAES[net.vae].tile_px, tile_frames=None)
    return replace(work, net=net, grid=grid, steps=steps, video=size)
