"""Plans and estimates of Flux: 22.2 GiB of weights and 2,816 tokens."""

from dataclasses import replace

import pytest

from opensora_launch.plan.make_plan import make_plan, predict
from opensora_launch.plan.memory import GIB
from opensora_launch.plan.plan import Plan
from opensora_launch.request.compose import compose
from opensora_launch.request.predicted_layouts import videos_like
from opensora_launch.schema.autoencoder import VaeKind
from opensora_launch.schema.config import Offload, RunConfig
from tests.plan.test_choose import Predicted, card, machine

(POINT,) = compose(["model=flux"]).points


def run_of(name: str) -> RunConfig:
    return replace(POINT.run, hardware=card(name))


def planned(name: str, gpus: int) -> Predicted:
    return predict(run_of(name), machine(gpus), videos_like(POINT.run))


@pytest.mark.parametrize("gpus", [1, 2, 4, 8])
@pytest.mark.parametrize("name", ["rtx3080", "rtx4090", "l4", "h100_sxm"])
def test_an_image_fits_on_any_number_of_gpus(name: str, gpus: int) -> None:
    work, (best, *_) = planned(name, gpus)
    assert best.fits
    assert best.memory.peak <= 0.985 * card(name).memory_gib * GIB
    assert work.steps == ((1, 50),)
    assert all(layout.cfg == 1 for rows, layout in best.layouts)


def test_memory_is_the_weights_and_the_autoencoders_picture() -> None:
    _, (best, *_) = planned("h100_sxm", 1)
    assert best.memory.weights / GIB == pytest.approx(22.17, abs=0.01)
    picture = 1024 * 576 * (768 + 3) * 2 + 83_819_683 * 2
    assert best.memory.decode == pytest.approx(best.memory.set_aside + 1.02 * (best.memory.weights + picture), rel=0.01)
    assert planned("rtx4090", 1)[1][0].placement.offload is Offload.host


def test_what_changes_the_picture_is_named() -> None:
    def plan_of(tile_px: int | None) -> Plan:
        model = replace(POINT.run.model, vae=replace(POINT.run.model.vae, tile_px=tile_px))
        return make_plan(replace(POINT.run, model=model), machine(1), videos_like(POINT.run), "0")

    assert plan_of(None).approximate == ()
    assert plan_of(512).approximate == ("model.vae.tile_px",)
    assert plan_of(None).model.vae.kind is VaeKind.image
