"""Predict the image stage that comes before the videos, on the same machine. Pure."""

from collections.abc import Sequence
from dataclasses import replace

from opensora_launch.plan.choose import Option, options
from opensora_launch.plan.fit import fit_problems
from opensora_launch.plan.workload import Workload
from opensora_launch.schema.config import LayoutConfig


def after_images(work: Workload, found: Sequence[Option]) -> tuple[Option, ...]:
    """Return the options of the videos with that of their images: its seconds, energy and memory."""
    images = image_work(work)
    if images is None:
        return tuple(found)
    best = options(images, LayoutConfig())[0]
    image_s, after = best.phases.total - best.phases.text, list[Option]()
    for option in found:
        phases = replace(option.phases, image=image_s)
        energy_kwh = option.energy_kwh * phases.total / option.phases.total
        after.append(replace(option, images=best, phases=phases, energy_kwh=energy_kwh))
    return tuple(after)


def image_work(work: Workload) -> Workload | None:
    """Return the image stage of a workload on the machine that this has now; None if it has no images."""
    machine = {name: getattr(work, name) for name in ("ranks", "gpus_per_node", "products", "fit", "card", "topology")}
    return work.images and replace(work.images, **machine)


def image_fit_problems(work: Workload) -> list[str]:
    """Return why the images fit in no layout."""
    images = image_work(work)
    if images is None:
        return []
    return [f"the images: {line}" for line in fit_problems(images, LayoutConfig(), options(images, LayoutConfig()))]
