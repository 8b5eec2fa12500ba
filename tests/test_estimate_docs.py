"""The table of published figures in docs/estimate.md is made from the code; --update-golden writes it anew."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest
import yaml

from opensora_launch.estimate import cost as e
from opensora_launch.estimate.builds import Build, gpu_cap_w, purchase_or_cloud
from opensora_launch.plan.costs import row_work
from opensora_launch.plan.networks import NETWORKS, token_grid
from opensora_launch.schema.prices import EstimateConfig

ROOT = Path(__file__).parent.parent
PAGE = ROOT / "docs" / "estimate.md"
BEGIN, END = "<!-- figures: made by tests/test_estimate_docs.py -->", "<!-- end of figures -->"
H100 = e.Running(989.4e12, 700.0, 0.0, 0.0)


class Figure(NamedTuple):
    what: str
    formula: str
    value: float
    printed: float
    within: float  # relative
    show: str  # format of the value


def preset(name: str) -> EstimateConfig:
    return EstimateConfig(**yaml.safe_load((ROOT / "configs" / "estimate" / f"{name}.yaml").read_text()))


def dit(p: EstimateConfig) -> Iterator[Figure]:
    assert p.flops_per_step
    assert p.num_steps
    image, training = e.flops_of_steps(p.flops_per_step, p.num_steps), p.training_flops[0]
    yield Figure(
        "DiT-XL/2, 512 x 512: FLOPs per step", "28 blocks on 1,024 tokens", p.flops_per_step, 524e9, 2e-3, ".4g"
    )
    yield Figure("DiT-XL/2: an image", "524.48e9 x 250 steps", image, 131e12, 2e-3, ".4g")
    months = e.gpu_months(training, 989.4e12)
    yield Figure("DiT-XL/2: training, H100-months", "1e21 / (989.4e12 x 2.592e6 s)", months, 0.4, 0.03, ".3f")
    images = e.outputs_to_break_even(training, image)
    yield Figure("DiT-XL/2: images to break even", "1e21 / 131.1e12", images, 7.6e6, 5e-3, ",.0f")


def sora(p: EstimateConfig) -> Iterator[Figure]:
    assert p.flops_per_step
    assert p.num_steps
    minute = e.flops_of_steps(p.flops_per_step, p.num_steps)
    rate = e.minutes_per_gpu_hour(e.cost_of_flops(minute, H100))
    yield Figure("Sora: FLOPs per step", "524.48e9 x 30 x 180", p.flops_per_step, 2.8e15, 0.02, ".4g")
    yield Figure("Sora: a minute of video", "2.832e15 x 250 steps", minute, 708e15, 1e-3, ".4g")
    yield Figure("Sora: minutes per hour and H100", "989.4e12 x 3600 / 708e15", rate, 5.0, 0.01, ".2f")
    for factor, flops, months, minutes in ((4.0, 1.1e25, 4211, 15.3e6), (10.0, 2.7e25, 10528, 38.1e6)):
        training = 1e21 * 30 * factor * 180 * 0.5
        assert training in p.training_flops
        yield Figure(
            f"Sora: training, data x {factor:g}", f"1e21 x 30 x {factor:g} x 180 x 50%", training, flops, 0.02, ".3g"
        )
        ours = e.gpu_months(training, 989.4e12)
        yield Figure("in H100-months", f"{training:.3g} / (989.4e12 x 2.592e6 s)", ours, months, 1e-4, ",.0f")
        ours = e.outputs_to_break_even(training, minute)
        yield Figure("minutes to break even", f"{training:.3g} / 708e15", ours, minutes, 5e-3, ",.0f")
    assert p.minutes_per_day == 17e6 * 0.5 + 43e6 * 0.05
    mean = e.fleet(e.Demand(p.minutes_per_day), rate, H100).gpus_at_mean
    yield Figure("Sora: H100s, even demand", "(17e6 x 50% + 43e6 x 5%) / (24 x 5.031)", mean, 89e3, 0.01, ",.0f")
    peak = e.fleet(e.Demand(p.minutes_per_day, p.drafts, p.peak_factor, p.utilisation), rate, H100).gpus
    yield Figure("Sora: H100s at peak demand", "88,212 x 2 drafts x 2 peak / 50% used", peak, 720e3, 0.02, ",.0f")


def guide(p: EstimateConfig) -> Iterator[Figure]:
    assert p.gpu_usd
    assert p.psu_w
    parts = (2 * p.gpu_usd, p.cpu_usd, p.memory_usd, p.storage_usd, p.other_usd)
    build = Build(2, 450.0, p.cpu_w, p.other_w, tuple(("", price) for price in parts))
    yield Figure("2 x RTX 4090: price, USD", "3,200 + 800 + 400 + 300 + 800", build.price_usd, 5500, 0.0, ",.0f")
    cap = gpu_cap_w(build, p.psu_w)
    draw = 2 * cap + p.cpu_w + p.other_w
    yield Figure("2 x RTX 4090 limited to 375 W: draw, W", "2 x 375 + 250 + 200", draw, 1200, 0.0, ",.0f")
    money = purchase_or_cloud(build, 720.0, 0.17, p.cloud_usd_per_gpu_hour * 2)
    yield Figure(
        "electricity per month, USD (150 to 200 printed)",
        "1.35 kW x 720 h x 0.17",
        money.power_usd_per_month,
        175,
        0.15,
        ",.0f",
    )


def rows() -> list[Figure]:
    return [*dit(preset("dit_xl")), *sora(preset("sora")), *guide(preset("guide_4090"))]


def table() -> str:
    head = ["| figure | formula | here | printed |", "|---|---|---:|---:|"]
    body = [
        f"| {row.what} | {row.formula} | {format(row.value, row.show)} | {format(float(row.printed), row.show)} |"
        for row in rows()
    ]
    return "\n".join([BEGIN, "", *head, *body, "", END])


@pytest.mark.parametrize("row", rows(), ids=lambda row: row.what)
def test_a_printed_figure_is_reproduced(row: Figure) -> None:
    assert row.value == pytest.approx(row.printed, rel=row.within)


def test_the_table_is_what_the_code_makes(request: pytest.FixtureRequest) -> None:
    text = PAGE.read_text(encoding="utf-8")
    before, _, rest = text.partition(BEGIN)
    _, _, after = rest.partition(END)
    made = f"{before}{table()}{after}"
    if request.config.getoption("--update-golden"):
        PAGE.write_text(made, encoding="utf-8")
    assert PAGE.read_text(encoding="utf-8") == made


def test_every_rented_machine_has_a_card_and_a_topology() -> None:
    found = re.findall(r"`hardware=(\w+) topology=(\w+)` \|", PAGE.read_text(encoding="utf-8"))
    assert len(found) == 8
    for card, topology in found:
        assert (ROOT / "configs" / "hardware" / f"{card}.yaml").is_file()
        assert (ROOT / "configs" / "topology" / f"{topology}.yaml").is_file()


def test_what_the_page_says_of_the_documents_own_assumptions() -> None:
    """A multiply-add is two FLOPs, and attention does not grow in step with the frames."""
    step = row_work(NETWORKS["dit_xl_2"], token_grid(NETWORKS["dit_xl_2"], 512, 512, 1)).flops
    assert step / 524.48e9 == pytest.approx(2.0, rel=1e-3)
    guess = row_work(NETWORKS["sora_guess"], token_grid(NETWORKS["sora_guess"], 512, 512, 1440))
    assert guess.flops == pytest.approx(4.4e16, rel=0.01)
    assert guess.attention_share == pytest.approx(0.83, abs=0.01)
    text = PAGE.read_text(encoding="utf-8")
    assert "4.4e16" in text
    assert "83%" in text
