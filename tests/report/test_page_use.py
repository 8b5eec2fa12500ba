"""report.html as it is used: by keyboard, by screen reader, on paper, in Korean; and of a real run, one rank slowed."""

import json
import re
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from opensora_launch.report.build import build_sweep
from opensora_launch.report.published import peer_lines, published
from opensora_launch.report.sweep import SweepPoint, sweep_report
from opensora_launch.report.wording import message
from tests.report.browser import Page
from tests.report.checked import build, check
from tests.report.synthetic import a_plan, plain_simulation, write_run
from tests.report.test_page import LARGE, ROOT, made_run
from tests.script_module import script_module

ENGLISH = re.compile(r"[a-z]{3,} [a-z]{2,} [a-z]{2,}")  # three words in a row
pytestmark = pytest.mark.browser
EFFICIENCY = "document.querySelector('.tile b').textContent"  # of the whole job


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run(tmp_path_factory.mktemp("use")) / "report.html"


@pytest.fixture(scope="module")
def curve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep on CPU ranks whose repeats spread, and where more ranks gained nothing."""
    folder = tmp_path_factory.mktemp("curve")
    points = [SweepPoint("tiny", n, (10.0 + n, 9.0 + n, 13.0 + n), "1: dp1", "a") for n in (1, 2, 4)]
    more: dict[str, Any] = {"unit": "CPU rank", "peers": peer_lines(LARGE), "unknown": [message("one_repeat")]}
    build_sweep(folder, sweep_report("b", points, version="0", device="a CPU", **more))
    return folder / "report.html"


def fitting(page: Page) -> list[str]:
    """What sticks out to the right of the window, but for what scrolls by itself."""
    found: list[str] = page.run(
        """[...document.querySelectorAll("body *")].filter((e) => e.getBoundingClientRect().right > innerWidth + 1
           && !e.closest(".scroll, svg, .skip")).map((e) => e.tagName + "." + e.className)"""
    )
    return found


def test_the_timeline_by_keyboard(page: Page, run: Path) -> None:
    """Tab comes to it, its keys zoom and move it, and what it shows is said."""
    page.open(run)
    shown = "document.querySelector('#timeline .controls span').textContent"
    whole = page.run(shown)
    for _ in range(160):
        page.key("Tab")
        if page.run("document.activeElement.tagName") == "CANVAS":
            break
    assert page.run("document.activeElement.getAttribute('role')") == "application"
    assert page.run("getComputedStyle(document.activeElement).outlineStyle") == "solid"  # one sees where one is
    page.key("+")
    closer = page.run(shown)
    page.key("ArrowRight")
    moved = page.run(shown)
    assert len({whole, closer, moved}) == 3
    begin, end = (float(n) for n in re.findall(r"[\d.]+", closer))
    first, last = (float(n) for n in re.findall(r"[\d.]+", moved))
    assert first > begin
    assert last - first == pytest.approx(end - begin, abs=0.002)
    page.key("Home")
    assert page.run(shown) == whole
    assert page.run("document.querySelector('#timeline .controls span').getAttribute('aria-live')") == "polite"


def test_every_control_is_reached_and_works_by_keyboard(page: Page, run: Path) -> None:
    page.open(run)
    page.key("Tab")
    assert page.run("document.activeElement.className") == "skip"
    reached = []
    for _ in range(160):
        page.key("Tab")
        here = page.run("document.activeElement.textContent.slice(0, 30)")
        reached.append(here)
        if here == "Efficiency":
            page.key("Enter")
    controls = "[...document.querySelectorAll('button, summary, main a[href]')].map((b) => b.textContent.slice(0, 30))"
    assert set(page.run(controls)) - {"Skip to the content"} <= set(reached)
    pressed = "[...document.querySelectorAll('#curve button')].map((b) => b.getAttribute('aria-pressed'))"
    assert page.run(pressed) == ["false", "true"]


def test_what_a_screen_reader_says(page: Page, run: Path) -> None:
    page.open(run)
    heard = page.heard()
    focusable = [
        node for node in heard if node.get("focusable") and node["role"] not in ("RootWebArea", "generic", "main")
    ]
    assert [node for node in focusable if not node["name"]] == []
    assert not [node for node in focusable if node["role"] in ("image", "img")]  # a picture has no keys
    (timeline,) = (node for node in heard if node["role"] == "application")
    assert timeline["name"].startswith("Timeline of 2 ranks over 32.8 s")
    assert timeline["roledescription"] == "zoomable timeline"
    headings = [node["name"] for node in heard if node["role"] == "heading"]
    assert headings[:5] == ["Run 20261120-190000", "Videos", "Findings", "What to change", "Scaling"]
    pictures = [node["name"] for node in heard if node["role"] in ("image", "img")]
    assert all(pictures)
    plots = [node["name"] for node in heard if node["role"] == "slider"]  # their keys move a cursor
    assert any(name.startswith("Power. GPU 0: ") for name in plots)
    (lost,) = (name for name in pictures if name.startswith("ideal 100.0%, exposed communication"))
    assert "the baseline" not in lost
    assert lost.endswith(f", left {page.run(EFFICIENCY)}")
    tables = [node["name"] for node in heard if node["role"] == "table"]
    by_rank = "Seconds, and percent of the rank's own wall time"
    assert {"Scaling", "Links, errors and throttling", by_rank} <= set(tables)


def test_a_stored_baseline(page: Page, tmp_path: Path) -> None:
    """It stands under the tiles, and what is left is the efficiency: of 24.75 s on two ranks 43 s are no loss of their
    own, and one rank of another host took 35.8 s, or one of this host 46.6.
    """
    events = [replace(e, meta=replace(e.meta, host="host-b")) for e in plain_simulation(1, scale=0.8).events()]
    build(write_run(tmp_path / "one", a_plan(1), [events], done=["0000_0"]))
    two = write_run(tmp_path / "two", a_plan(2), [plain_simulation(2).events()], done=["0000_0"])
    report = build(two, baseline=tmp_path / "one")
    assert report["efficiency"]["job"]["efficiency"] == pytest.approx(35.8 / 24.75 / 2, abs=1e-6)
    page.open(two / "report.html")
    assert page.run(EFFICIENCY) == "72.3%"
    lost = page.run("document.querySelector('#waterfall svg').getAttribute('aria-label')")
    assert lost.endswith("slower than in the baseline 14.5%, left 72.3%")
    how = "Stored report of run one on 1 x a CPU, engine native, measured on host-b, not on this machine."
    assert page.run("document.getElementById('baseline').textContent") == f"Baseline (stored): {how}"
    page.open(two / "report.html", language="ko")
    how = "실행 one의 저장된 보고서: a CPU 1개, 엔진 native. 이 장비가 아닌 곳(host-b)에서 측정했습니다."
    assert page.run("document.getElementById('baseline').textContent") == f"기준(저장): {how}"
    build(write_run(tmp_path / "slow", a_plan(1), [plain_simulation(1, scale=1.1).events()], done=["0000_0"]))
    build(two, baseline=tmp_path / "slow")
    page.open(two / "report.html")
    lost = page.run("document.querySelector('#waterfall svg').getAttribute('aria-label')")
    assert lost.endswith("faster than in the baseline 7.3%, left 94.1%")


def test_all_that_is_sampled_is_drawn_and_written(page: Page, run: Path) -> None:
    page.open(run)
    text = page.run("document.body.innerText")
    for said in (
        "Temperature", "NVLink sent", "NVLink received", "PCIe sent", "PCIe received", "Throttle reasons",
        "ECC errors since the start", "XID 79 on GPU 1 host-a at 12.00 s", "NVLink out / in", "3 / 1",
    ):  # fmt: skip
        assert said in text, said
    inked = page.run(
        """[...document.querySelectorAll("canvas")].filter((c) => {
             const d = c.getContext("2d").getImageData(0, 0, c.width, c.height).data, seen = new Set();
             for (let n = 0; n < d.length; n += 4) seen.add(d[n] * 65536 + d[n + 1] * 256 + d[n + 2]);
             return seen.size > 3; }).length"""
    )
    assert inked == page.run("document.querySelectorAll('canvas').length") == 13


def test_the_theme_is_the_systems_until_another_is_chosen(page: Page, run: Path) -> None:
    """What was chosen stays after the page was printed, which is always light."""
    ground = "getComputedStyle(document.body).backgroundColor"
    light, dark = "rgb(255, 255, 255)", "rgb(18, 21, 26)"
    for is_dark, before, after in ((True, dark, light), (False, light, dark)):
        page.open(run, dark=is_dark)
        assert page.run(ground) == before
        page.run("document.getElementById('theme').click()")
        assert page.run(ground) == after
        page.pdf()
        assert page.run(ground) == after
    page.open(run, dark=True)
    page.pdf()
    assert page.run(ground) == dark


def test_on_paper_nothing_stays_folded_and_no_heading_stands_alone(page: Page, run: Path, tmp_path: Path) -> None:
    page.open(run, dark=True)
    page.run(
        """addEventListener("beforeprint", () => { window.seen = {
             folded: document.querySelectorAll("details:not([open])").length,
             ground: getComputedStyle(document.body).backgroundColor,
             controls: [...document.querySelectorAll(".tools")].filter((e) => e.offsetParent).length,
             breaks: [...document.querySelectorAll("h2, h3, h2 + p, summary, figcaption")]
               .map((e) => getComputedStyle(e).breakAfter),
             figures: [...document.querySelectorAll("figure")].map((e) => getComputedStyle(e).breakInside) }; })"""
    )
    folded = page.run("document.querySelectorAll('details:not([open])').length")
    assert folded >= 1
    paper = page.pdf()
    assert paper.startswith(b"%PDF")
    assert 3 <= len(re.findall(rb"/Type\s*/Page\b", paper)) <= 12
    assert page.run("seen.folded") == 0
    assert page.run("document.querySelectorAll('details:not([open])').length") == folded  # and back again
    page.open(run, dark=True, media="print")
    assert page.run("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.run("[...document.querySelectorAll('.tools')].filter((e) => e.offsetParent).length") == 0
    kept = "[...new Set([...document.querySelectorAll('{0}')].map((e) => getComputedStyle(e).{1}))]"
    for what in ("h2", "h3", "h2 + p:not(#timeline-about)", "summary", "figcaption"):
        assert page.run(kept.replace("{0}", what).replace("{1}", "breakAfter")) == ["avoid"], what
    assert page.run(kept.replace("{0}", "figure, tr").replace("{1}", "breakInside")) == ["avoid"]


def test_spread_is_drawn_in_both_modes(page: Page, curve: Path) -> None:
    """Three points with a bar and two ends each: from the slowest repeat to the fastest."""
    page.open(curve)
    bar = "['y1', 'y2'].map((name) => Number(l.getAttribute(name)))"
    ends = f"[...document.querySelectorAll('#curve svg .spread')].map((l) => {bar})"
    dots = "[...document.querySelectorAll('#curve svg circle')].slice(0, 3).map((c) => +c.getAttribute('cy'))"
    for mode in (0, 1):
        page.run(f"document.querySelectorAll('#curve button')[{mode}].click()")
        bars = page.run(ends)
        assert len(bars) == 9
        for (low, high), dot in zip(bars[::3], page.run(dots), strict=True):
            assert low > dot > high  # y grows downwards
            assert low - high > 5
    text = page.run("document.body.innerText")
    assert "The bars reach from the slowest to the fastest repeat." in text
    assert "No speed-up was measured: none of the" in text
    assert "4 CPU ranks" in text
    assert "no speed-up" in text


@pytest.mark.parametrize("width", [390, 800, 1280])
@pytest.mark.parametrize("dark", [False, True])
def test_published_figures_at_every_width(
    page: Page, tmp_path_factory: pytest.TempPathFactory, width: int, dark: bool
) -> None:
    folder = tmp_path_factory.mktemp("published")
    points, weaker = published(ROOT / "docs/benchmarks/published_scaling.json")
    build_sweep(folder, sweep_report("Published scaling", points, version="0", kind="published", unknown=weaker))
    page.open(folder / "report.html", width=width, dark=dark)
    assert fitting(page) == []
    assert "opensora2-11b-768px-h100" in page.run("document.body.innerText")


@pytest.mark.parametrize("which", ["run", "curve"])
def test_the_korean_page_is_korean(page: Page, run: Path, curve: Path, which: str) -> None:
    """No sentence in English stays, but the prompt, the driver's words and the names of other projects."""
    page.open({"run": run, "curve": curve}[which], language="ko")
    tags = ("li", "p", "td", "th", "strong", "span", "figcaption", "caption", "summary", "h2", "h3")
    where = ", ".join([*(f"main {tag}" for tag in tags), "header p", "footer"])
    script = f"""[...document.querySelectorAll("{where}")]
      .filter((e) => !e.closest("pre") && ![...e.children].length).map((e) => e.textContent)"""
    lines = [line for line in page.run(script) if ENGLISH.search(line) and "raining, sea" not in line]
    assert lines == []
    assert page.run("[...document.querySelectorAll('main [lang=en]')].map((e) => e.textContent)") == []


@pytest.fixture(scope="module")
def slowed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A real `generate` on four CPU ranks, of which one is put to sleep again and again."""
    return Path(script_module("report_picture").run(tmp_path_factory.mktemp("slowed"), slow_rank=True))


@pytest.mark.timeout(600)
def test_a_real_run_with_a_slowed_rank(page: Page, slowed: Path, tmp_path: Path) -> None:
    """The report names it and the cause; the page says so at every width, light and dark, in both languages."""
    report: dict[str, Any] = json.loads((slowed / "report.json").read_text())
    check(slowed, report)
    first = report["attempts"][0]["findings"][0]
    assert (first["code"], first["ranks"], first["cause"]["code"]) == ("slow_rank", [2], "asleep")
    assert report["advice"][0]["what"] == first
    assert report["environment"]["versions"]["torch"]
    assert report["environment"]["variables"]["OMP_NUM_THREADS"] == "1"
    assert report["command"].endswith(f"--prompts {slowed}/prompts.jsonl")
    html = slowed / "report.html"
    for width in (390, 800, 1280):
        for dark in (False, True):
            page.open(html, width=width, dark=dark)
            assert fitting(page) == []
            text = page.run("document.body.innerText")
            assert f"Rank 2 is slow: its process slept ({first['host']})" in text
            assert "4 CPU ranks" in text
            out = tmp_path / f"{width}-{dark}.png"
            page.picture(out, {"x": 0, "y": 0, "width": width, "height": 900})
            colours = Image.open(out).convert("RGB").getcolors(1 << 20)
            assert colours is not None
            usual = max(colours)[1]
            assert isinstance(usual, tuple)
            assert (sum(usual) < 150) == dark
    page.open(html, language="ko")
    assert "2번 랭크가 느립니다: 프로세스가 잠들어 있었음" in page.run("document.body.innerText")
    before = (html.stat().st_mtime_ns, report["attempts"][0]["wall_s"])
    again = build(slowed)
    assert (again["attempts"][0]["wall_s"], html.stat().st_mtime_ns > before[0]) == (before[1], True)
