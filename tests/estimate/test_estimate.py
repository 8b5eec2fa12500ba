"""Reproduce the figures of the two documents, showing the arithmetic, and check the rules."""

import pytest

from opensora_launch.estimate.builds import (
    Build,
    cooling,
    gpu_cap_w,
    purchase_or_cloud,
    supplies,
    usd_per_gpu_hour,
)
from opensora_launch.estimate.cost import (
    Demand,
    Running,
    cost_of_flops,
    fleet,
    flops_of_steps,
    gpu_months,
    minutes_per_gpu_hour,
    outputs_to_break_even,
    per_minute,
)

H100 = Running(flops_per_s=989.4e12, watts=700.0, usd_per_hour=2.0, usd_per_kwh=0.1)  # at its full dense bf16 peak
DIT_STEP = 524.48e9  # printed as 524 G; 28 blocks of DiT-XL/2 on 1024 tokens; multiply-adds, not 2 FLOPs each
DIT_TRAINING = 1e21
GUIDE = Build(
    2, 450.0, 250.0, 200.0, (("GPUs", 3200.0), ("CPU", 800.0), ("memory", 400.0), ("storage", 300.0), ("other", 800.0))
)


def significant(value: float, digits: int) -> str:
    return f"{value:.{digits - 1}e}"


def test_dit_xl() -> None:
    image = flops_of_steps(DIT_STEP, 250)
    assert round(image / 1e12) == 131  # 524.48e9 x 250
    assert round(outputs_to_break_even(DIT_TRAINING, image) / 1e6, 1) == 7.6  # 1e21 / 131e12
    assert round(gpu_months(DIT_TRAINING, H100.flops_per_s), 1) == 0.4  # 1e21 / (989.4e12 x 2.592e6 s)
    assert round(gpu_months(DIT_TRAINING, H100.flops_per_s) * 30) == 12  # days on one GPU


def sora_minute() -> float:
    return flops_of_steps(DIT_STEP * 30 * 180, 250)


def test_sora_inference() -> None:
    assert significant(DIT_STEP * 30 * 180, 2) == "2.8e+15"  # 30 x the parameters, 1440 / 8 latent frames
    assert significant(sora_minute(), 3) == "7.08e+17"  # x 250 steps, one minute
    cost = cost_of_flops(sora_minute(), H100)
    assert minutes_per_gpu_hour(cost) == pytest.approx(5.03, abs=0.005)  # 989.4e12 x 3600 / 708e15
    assert cost.kwh == pytest.approx(700 / 1000 / 5.03, rel=1e-3)
    assert cost.usd == pytest.approx(2.0 / 5.03 + 0.1 * 0.7 / 5.03, rel=1e-3)


@pytest.mark.parametrize(
    ("data", "training", "minutes_e6", "months"), [(4.0, "1.1e+25", 15.3, 4211), (10.0, "2.7e+25", 38.1, 10528)]
)
def test_sora_training(data: float, training: str, minutes_e6: float, months: int) -> None:
    flops = DIT_TRAINING * 30 * data * 180 * 0.5  # model x data x frames x share of video: Factorial Funds' scaling
    assert significant(flops, 2) == training
    assert round(gpu_months(flops, H100.flops_per_s)) == months
    assert round(outputs_to_break_even(flops, sora_minute()) / 1e6, 1) == minutes_e6


def test_sora_fleet() -> None:
    """8.5e6 minutes of TikTok (50%) and 2.15e6 of YouTube (5%) per day. The printed 15% does not give 89 thousand."""
    minutes = 17e6 * 0.5 + 43e6 * 0.05
    mean = fleet(Demand(minutes), 5.0, H100)
    assert mean.gpus == 88_750  # 10.65e6 / (24 x 5), published as 89 thousand
    peak = fleet(Demand(minutes, drafts=2.0, peak_factor=2.0, utilisation=0.5), 5.0, H100)
    assert peak.gpus == 710_000  # x 2 x 2 / 0.5
    assert peak.gpus == pytest.approx(720_000, rel=0.02)
    assert fleet(Demand(17e6 * 0.5 + 43e6 * 0.15), 5.0, H100).gpus == 124_584  # with the share as printed


def test_a_fleet_pays_for_idle_gpus_but_not_for_their_electricity() -> None:
    got = fleet(Demand(2400.0, drafts=1.5, peak_factor=3.0, utilisation=0.75), 4.0, H100)
    assert got.gpus_at_mean == 25  # 2400 / (24 x 4)
    assert got.gpus == 150  # 25 x 1.5 x 3 / 0.75
    assert got.kwh_per_day == pytest.approx(25 * 1.5 / 0.75 * 24 * 0.7)
    assert got.usd_per_day == pytest.approx(150 * 24 * 2.0 + got.kwh_per_day * 0.1)
    assert fleet(Demand(2401.0, 1.5, 3.0, 0.75), 4.0, H100).gpus == 151


def test_a_minute_is_made_of_videos() -> None:
    video = cost_of_flops(1e18, H100)
    minute = per_minute(video, video_s=5.0)
    assert minute.flops == 12e18
    assert minute.gpu_hours == pytest.approx(12e18 / 989.4e12 / 3600)
    assert minute.usd == pytest.approx(12 * video.usd)


def test_the_guides_build() -> None:
    """The guide's price adds up, but its power does not: parts and reserve make 1650 W, and 1200 W is printed."""
    assert GUIDE.price_usd == 5500
    assert GUIDE.draw_w == 1350  # 2 x 450 + 250 + 200
    assert supplies(GUIDE.draw_w, reserve=300 / 1350) == (1, 2000)  # 1650 W: a 1600 W supply is too small
    assert gpu_cap_w(GUIDE, 1200.0) == 375  # (1200 - 250 - 200) / 2: what the printed supply delivers
    capped = Build(2, 375.0, 250.0, 200.0, GUIDE.parts_usd)
    assert capped.draw_w == 1200
    assert supplies(capped.draw_w, reserve=0.0) == (1, 1200)
    assert gpu_cap_w(GUIDE, 3000.0) == 450


def test_the_guides_running_costs() -> None:
    """Electricity costs 150 to 200 dollars per month around the clock, a cloud 1000 to 3000."""
    for cloud, months in ((1000.0, 6.6), (3000.0, 1.9)):
        got = purchase_or_cloud(GUIDE, 720.0, 0.17, cloud / 720)
        assert got.power_usd_per_month == pytest.approx(165.24)  # 1.35 kW x 720 h x 0.17
        assert round(got.months_to_break_even or 0, 1) == months  # 5500 / (cloud - 165)
    never = purchase_or_cloud(GUIDE, 720.0, 0.17, 0.2)
    assert never.months_to_break_even is None
    assert usd_per_gpu_hour(GUIDE, life_months=36.0) == pytest.approx(5500 / (36 * 720 * 2))


@pytest.mark.parametrize(
    ("draw", "reserve", "want"),
    [
        (300.0, 0.2, (1, 450)),
        (850.0, 0.0, (1, 850)),
        (851.0, 0.0, (1, 1000)),
        (2000.0, 0.01, (2, 1200)),
        (10200.0, 0.2, (7, 2000)),
    ],
)
def test_supplies(draw: float, reserve: float, want: tuple[int, int]) -> None:
    assert supplies(draw, reserve) == want


def test_cooling() -> None:
    got = cooling(1350.0)
    assert round(got.btu_per_hour) == 4606  # 1350 x 3.412
    assert got.airflow_cfm == pytest.approx(237.6)  # 1.76 x 1350 / 10
    assert got.circuit == "120 V, 15 A"  # 80% of 1800 W
    assert cooling(1441.0).circuit == "120 V, 20 A"
    assert cooling(10200.0).circuit == "several circuits, or three-phase power"
