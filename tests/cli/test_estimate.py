"""`opensora-launch estimate`: the figures of the documents through the command line, and cards for a video."""

import json
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest

from opensora_launch.cli import main
from opensora_launch.cli.estimate import value_text
from opensora_launch.cli.plan_picture import bars_svg
from opensora_launch.estimate.figures import Figure
from tests.speed import HYDRA, in_python, main_without, times_slower

ROOT = Path(__file__).parents[2]


def ask(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    assert main(["estimate", *argv, "--json"]) == 0
    data: dict[str, Any] = json.loads(capsys.readouterr().out)
    return data


def values(capsys: pytest.CaptureFixture[str], *argv: str) -> dict[str, Any]:
    found: dict[str, Any] = ask(capsys, *argv)["values"]
    return found


def test_dit_xl(capsys: pytest.CaptureFixture[str]) -> None:
    got = values(capsys, "breakeven", "estimate=dit_xl")
    assert got["flops_per_step"] == pytest.approx(524e9, rel=2e-3)
    assert got["flops"] == pytest.approx(131e12, rel=2e-3)
    assert got["outputs"] == pytest.approx(7.6e6, rel=5e-3)
    assert values(capsys, "video", "estimate=dit_xl")["images_per_gpu_hour"] == pytest.approx(27165, rel=1e-3)


def test_sora(capsys: pytest.CaptureFixture[str]) -> None:
    got = values(capsys, "video", "estimate=sora")
    assert got["flops_per_step"] == pytest.approx(2.8e15, rel=0.02)
    assert got["minute_flops"] == pytest.approx(708e15, rel=1e-3)
    assert got["minutes_per_gpu_hour"] == pytest.approx(5.0, rel=0.01)
    got = values(capsys, "breakeven", "estimate=sora")
    assert (round(got["gpu_months1"]), round(got["gpu_months2"])) == (4211, 10528)
    assert (round(got["outputs1"] / 1e6, 1), round(got["outputs2"] / 1e6, 1)) == (15.3, 38.1)
    assert got["output_llm0"] == pytest.approx(708e15 / 1.4e14, rel=1e-3)  # 2 x 70e9 x 1000
    assert got["output_llm1"] == pytest.approx(708e15 / 8.8e14, rel=1e-3)  # 2 x 2 x 220e9 x 1000
    assert got["training2_llm1"] == pytest.approx(2.7e25 / 2.1e25)
    got = values(capsys, "fleet", "estimate=sora")
    assert got["gpus_at_mean"] == pytest.approx(89e3, rel=0.01)
    assert got["gpus"] == pytest.approx(720e3, rel=0.025)
    page = (ROOT / "docs" / "estimate.md").read_text()
    assert f"| {got['gpus']:,} | 720,000 |" in page
    assert f"| {got['gpus_at_mean']:,.0f} | 89,000 |" in page


def test_the_guides_build(capsys: pytest.CaptureFixture[str]) -> None:
    got = values(capsys, "build", "estimate=guide_4090", "hardware=rtx4090", "topology=2gpu")
    assert (got["part0_usd"], got["price_usd"]) == (3200, 5500)
    assert (got["draw_w"], got["psu"]) == (1350, "1 x 2000 W")  # what its own parts add up to
    assert (got["psu_w"], got["gpu_cap_w"], got["capped_draw_w"]) == (1200, 375, 1200)
    assert got["power_usd_per_month"] == pytest.approx(1.2 * 720 * 0.17)  # of the machine as it is limited
    assert got["btu_per_hour"] == pytest.approx(1200 * 3.412)
    free = values(
        capsys, "build", "estimate=guide_4090", "hardware=rtx4090", "topology=2gpu", "estimate.psu_w=null"
    )  # fmt: skip
    assert free["btu_per_hour"] == pytest.approx(1350 * 3.412)
    assert 150 < free["power_usd_per_month"] < 200  # as the guide has it


def test_a_video_is_counted_and_predicted(capsys: pytest.CaptureFixture[str]) -> None:
    data = ask(capsys, "video", "video=768px", "hardware=h100_sxm", "topology=8gpu")
    got = data["values"]
    assert (data["topic"], data["hardware"], got["row_forwards"]) == ("video", "h100_sxm", 80)
    assert got["flops_per_row"] == pytest.approx(5.09e15, rel=1e-3)
    assert got["flops"] == pytest.approx(80 * got["flops_per_row"])
    assert 60 < got["gpu_hours"] * 3600 / 8 < 300  # seconds on 8
    assert got["minute_gpu_hours"] == pytest.approx(got["gpu_hours"] * 60 / (129 / 24))
    assert got["minutes_per_gpu_hour"] == pytest.approx(1 / got["minute_gpu_hours"])
    assert 0.2 < got["peak_share"] < 0.9
    fewer = values(capsys, "video", "video=768px", "hardware=h100_sxm", "topology=8gpu", "sampling.prune_rows=false")
    assert fewer["row_forwards"] == 150
    rent = values(
        capsys, "video", "video=768px", "hardware=h100_sxm", "topology=8gpu", "estimate.usd_per_gpu_hour=4",
        "estimate.usd_per_kwh=0",
    )  # fmt: skip
    assert rent["usd"] == pytest.approx(4 * got["gpu_hours"])


def test_a_first_frame_is_counted_too(capsys: pytest.CaptureFixture[str]) -> None:
    words = ("video", "video=256px", "hardware=rtx4090", "topology=2gpu")
    alone, both = values(capsys, *words, "sampling.cond_type=t2v"), values(capsys, *words, "image=flux")
    image = values(capsys, *words[:1], *words[2:], "model=flux")
    assert both["image_flops"] == pytest.approx(image["flops"])
    assert both["flops"] > alone["flops"] + 0.99 * image["flops"]
    assert both["gpu_hours"] > alone["gpu_hours"] + 0.9 * image["gpu_hours"]


def test_rent_includes_electricity(capsys: pytest.CaptureFixture[str]) -> None:
    rented = values(capsys, "video", "hardware=h100_sxm")  # no list price: the cloud's
    assert rented["usd"] == pytest.approx(2.0 * rented["gpu_hours"])
    free = values(capsys, "video", "hardware=rtx4090", "estimate.usd_per_kwh=0")
    owned = values(capsys, "video", "hardware=rtx4090")
    assert owned["usd"] == pytest.approx(free["usd"] + 0.17 * owned["kwh"])
    rented = values(capsys, "video", "hardware=rtx4090", "estimate.usd_per_gpu_hour=1")
    assert rented["usd"] == pytest.approx(rented["gpu_hours"])


def test_both_networks_of_a_mixture_are_in_memory(capsys: pytest.CaptureFixture[str]) -> None:
    """Wan 2.2 A14B is two networks of 14.3e9 parameters: 53 GiB in bf16."""
    cards = ask(capsys, "card", "video=256px", "estimate.network=wan2.2_a14b")["cards"]
    by_name = {card["card"]: card for card in cards}
    assert by_name["h100_sxm"]["how"] == "fits"
    assert by_name["h100_sxm"]["peak_gib"] > 2 * 2 * 14.3e9 / 2**30
    assert "offload" in by_name["l40"]["how"]


def test_one_card_against_another_as_practitioners_know_them(capsys: pytest.CaptureFixture[str]) -> None:
    for size in ("256px", "768px"):
        cards = ask(capsys, "card", f"video={size}")["cards"]
        seconds = {card["card"]: card["seconds"] for card in cards}
        assert seconds["rtx3090"] < seconds["l4"]
        assert seconds["h200"] < seconds["h100_sxm"] <= seconds["h800"]


def test_other_networks_are_counted_with_their_own_rows_and_steps(capsys: pytest.CaptureFixture[str]) -> None:
    size = ("video=custom", "video.width_px=512", "video.height_px=512", "video.num_frames=1")
    got = values(capsys, "video", "estimate.network=dit_xl_2", "hardware=h100_sxm", *size)
    assert got["flops_per_row"] == pytest.approx(2 * 524.48e9, rel=0.005)  # a multiply-add is two FLOPs
    assert got["row_forwards"] == 2 * 250


def test_open_soras_networks_compute_only_the_rows_that_count(capsys: pytest.CaptureFixture[str]) -> None:
    h100 = ("video", "video=768px", "hardware=h100_sxm")
    own = values(capsys, *h100)
    named = values(capsys, *h100, "estimate.network=open_sora_v2")
    assert (named["row_forwards"], named["flops"], named["gpu_hours"]) == (80, own["flops"], own["gpu_hours"])
    assert values(capsys, *h100, "estimate.network=open_sora_v2_dc_ae")["row_forwards"] == 80
    assert values(capsys, *h100, "estimate.network=open_sora_v2", "sampling.prune_rows=false")["row_forwards"] == 150
    assert values(capsys, *h100, "estimate.network=hunyuan_video")["row_forwards"] == 50
    assert values(capsys, *h100, "estimate.network=hunyuan_video", "sampling.num_steps=20")["row_forwards"] == 20


def test_other_networks_decode_with_their_own_vae(capsys: pytest.CaptureFixture[str]) -> None:
    """What fits and how long it takes: Wan's holds 8.6 GiB at 1280 x 720 where Hunyuan's tiles are smaller."""
    size = ("video=custom", "video.width_px=1280", "video.height_px=720", "video.num_frames=81")
    cards = ask(capsys, "card", *size, "estimate.network=wan2.1_1.3b")["cards"]
    (h100,) = [card for card in cards if card["card"] == "h100_sxm"]
    weights = 2 * (1.42e9 + 126_892_531)
    decoding = 2 * 1280 * 720 * (5060 + 3 * 81)
    assert h100["peak_gib"] == pytest.approx((1.02 * (weights + decoding)) / 2**30 + 1.2)


def test_cards_memory_first(capsys: pytest.CaptureFixture[str]) -> None:
    cards = ask(capsys, "card", "video=256px")["cards"]
    names = [card["card"] for card in cards]
    by_name = {card["card"]: card for card in cards}
    assert {"rtx3080", "rtx4090", "l4", "h100_sxm", "gb200"} <= set(names)
    fits = [card["how"] == "fits" for card in cards]
    assert fits == sorted(fits, reverse=True)
    assert by_name["rtx4090"]["how"] == "placement.offload=host"
    assert all(card["seconds"] for card in cards), "every card makes it"
    long = ask(capsys, "card", "video=256px", "video.num_frames=1201")["cards"]
    assert "GiB" in long[-1]["how"]
    assert long[-1]["seconds"] is None
    whole = [card["seconds"] for card in cards if card["how"] == "fits"]
    assert whole == sorted(whole)
    assert by_name["h100_sxm"]["seconds"] < by_name["rtx_a6000"]["seconds"]
    assert by_name["h100_sxm"]["usd"] is None  # no list price is published
    assert by_name["rtx4090"]["usd"] > 0


@pytest.mark.parametrize(("order", "key"), [("watts", "watts"), ("cost", "usd"), ("memory", "memory_gib")])
def test_cards_by_another_order(order: str, key: str, capsys: pytest.CaptureFixture[str]) -> None:
    cards = ask(capsys, "card", "video=256px", f"estimate.card_order={order}")["cards"]
    ranked = [card[key] for card in cards if card["how"] == "fits" and card[key] is not None]
    assert ranked == sorted(ranked, reverse=order == "memory")
    assert len(ranked) > 1


def test_text_shows_the_arithmetic(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "breakeven", "estimate=sora"]) == 0
    text = capsys.readouterr().out
    assert "hardware=h100_sxm is assumed" in text
    assert "4,211 GPU  1.08e+25 / (9.894e+14 FLOP/s x 2.592e6 s)" in text
    assert main(["estimate", "card", "topology=2gpu"]) == 0
    assert "on 2 of each card" in capsys.readouterr().out


def test_pictures(empty_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", "card", "video.num_frames=1201", "--plot", "cards.svg"]) == 0
    picture = ElementTree.fromstring((empty_folder / "cards.svg").read_text())
    words = [node.text for node in picture.iter("{http://www.w3.org/2000/svg}text")]
    assert words.count("h200") == 2  # time and memory
    assert words.count("rtx3080") == 1  # it cannot run it, and the memory says why
    pytest.importorskip("matplotlib")
    for ending, start in (("png", b"\x89PNG"), ("pdf", b"%PDF")):
        assert main(["estimate", "card", "--plot", f"cards.{ending}"]) == 0
        assert (empty_folder / f"cards.{ending}").read_bytes().startswith(start)
    longest = ElementTree.fromstring(bars_svg("t", [("a<b", 2.0, "s"), ("c", 1.0, "s")]))
    bars = [float(n.get("width", 0)) for n in list(longest.iter("{http://www.w3.org/2000/svg}rect"))[1:]]
    assert bars[0] == 2 * bars[1]


@pytest.mark.parametrize(
    ("argv", "said"),
    [
        (["videos"], "topic=videos is not known; use one of video, fleet"),
        (["fleet", "estimate.utilisation=1.5"], "estimate.utilisation=1.5 must be more than 0 and at most 1"),
        (["fleet", "estimate.peak_factor=0.5"], "estimate.peak_factor=0.5 must be at least 1"),
        (["fleet", "estimate=dit_xl"], "this output is an image"),
        (["breakeven"], "estimate.training_flops=[1e21]"),
        (["video", "estimate.flops_per_step=1e12"], "needs estimate.num_steps"),
        (["video", "estimate.num_steps=5"], "estimate.num_steps is read only with estimate.flops_per_step"),
        (["fleet", "estimate.output_s=5"], "for a counted video use video.num_frames"),
        (["video", "estimate.flops_per_s=1e12"], "for a counted video use hardware=CARD"),
        (["video", "estimate=sora", "hardware=rtx4090"], "is above the peak of rtx4090"),
        (["video", "attention=flash2"], "attention=flash2 changes no prediction"),
        (["video", "numerics.tf32=true"], "numerics.tf32=true changes only fp32 products"),
        (["video", "estimate.network=sora"], "estimate.network=sora is not known"),
        (["video", "estimate.usd_per_kwh=-1"], "estimate.usd_per_kwh=-1.0 must be at least 0"),
        (["video", "estimate.usd_per_kwh=nan"], "estimate.usd_per_kwh=nan must be at least 0"),
        (["build", "estimate.psu_reserve=-0.5"], "estimate.psu_reserve=-0.5 must be at least 0"),
        (["build", "estimate.cpu_w=inf"], "estimate.cpu_w=inf must be at least 0"),
        (
            ["build", "estimate.psu_w=450"],
            "estimate.psu_w=450.0 leaves nothing for GPUs: CPU and other parts draw 450 W",
        ),
        (["breakeven", "estimate.training_flops=[1e21,0]"], "estimate.training_flops=0.0 must be more than 0"),
        (["fleet", "estimate.peak_factor=nan"], "estimate.peak_factor=nan must be at least 1"),
        (["video", "topology.gpus_per_node=0"], "topology.gpus_per_node=0 must be at least 1"),
        (["card", "topology.node_link_gb_s=-1"], "topology.node_link_gb_s=-1.0 must be more than 0"),
        (["video", "hardware=l20", "hardware.bandwidth_gb_s=0"], "hardware.bandwidth_gb_s=0.0 must be more than 0"),
        (["video", "video=768px", "hardware=rtx3080", "video.num_frames=513"], "does not fit"),
        (["card", "video.num_frames=128"], "video.num_frames=128 must be 1 plus a multiple of 4"),
    ],
)
def test_wrong_questions(argv: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["estimate", *argv]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("value", "unit", "text"),
    [
        (None, "USD", "-"),
        ("never", "months", "never"),
        (2.832e15, "FLOP", "2.832e15"),
        (0.0123, "USD", "$0.0123"),
        (5500.0, "USD", "$5,500.00"),
        (0.4567, "share", "45.7%"),
        (80, "", "80"),
        (710000.4, "GPU", "710,000 GPU"),
        (5.0312, "min", "5.031 min"),
    ],
)
def test_numbers_as_people_read_them(value: float | str | None, unit: str, text: str) -> None:
    assert value_text(Figure("k", "l", value, unit)) == text


def test_it_is_quick_and_needs_no_torch(empty_folder: Path) -> None:
    """Measured: 2.5 times what Hydra takes for nothing, for 25 cards are read and planned."""
    code = main_without(["estimate", "card"], {"torch"})
    assert times_slower(in_python(code, "[]"), in_python(HYDRA), 4) <= 4
