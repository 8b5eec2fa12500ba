"""The pages for everyone: axe finds nothing, marks and text have contrast, keys reach what a pointer shows."""

import re
from itertools import combinations
from pathlib import Path
from typing import Any

import pytest

from opensora_launch.cli import main
from opensora_launch.report.build import build_sweep
from opensora_launch.report.published import published
from opensora_launch.report.sweep import SweepPoint, sweep_report
from opensora_launch.report.wording import message
from opensora_launch.rundir import AttemptDir
from opensora_launch.runs.waited import Waited, record_waited
from tests.report.browser import Page
from tests.report.checked import build
from tests.report.synthetic import EPOCH_S, a_plan, plain_simulation, write_run
from tests.report.test_page import PAGE, ROOT, made_run
from tests.report.test_previews_shown import written
from tests.report.test_scaling import sweep_of

pytestmark = pytest.mark.browser
AXE_TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "best-practice"]
PARTS_INKS = (
    "attention", "double", "single", "compute", "rest", "communication", "waiting", "idle", "load", "text", "image",
    "compile", "vae", "save", "setup", "other", "queue", "earlier", "start", "end", "serial", "tail", "soft", "bad",
    "good", "accent",
)  # fmt: skip
LINE_INKS = tuple(f"s{n}" for n in range(16))
MARK_CONTRAST = 3.0


@pytest.fixture(scope="module")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A run on two GPUs, one of 16 ranks of which one is slow, one with previews, sweeps, a comparison, and published
    figures.
    """
    folder = tmp_path_factory.mktemp("pages")
    two = made_run(folder)
    record_waited(AttemptDir(two / "attempts/0"), Waited(EPOCH_S - 131.0, EPOCH_S - 20.0, EPOCH_S - 125.0))
    build(two)
    slow = [1.0] * 11 + [2.0] + [1.0] * 4
    many = write_run(folder / "many", a_plan(16), [plain_simulation(16, slow=slow, scale=8).events()], done=["0000_0"])
    build(many)
    points = [SweepPoint("tiny", n, (10.0 + n, 9.0 + n), "1: dp1", "a") for n in (1, 2, 4)]
    data = sweep_report("b", points, version="0", device="a CPU", unit="CPU rank", unknown=[message("one_repeat")])
    build_sweep(folder / "many", data, "sweep")
    figures, weaker = published(ROOT / "docs/benchmarks/published_scaling.json")
    build_sweep(folder / "many", sweep_report("P", figures, version="0", kind="published", unknown=weaker), "published")
    bench, _ = sweep_of(folder / "bench", busy=0.5, vae=60.0)
    main(["report", str(bench)])
    shown = written(folder / "previews", 0.5)
    build(shown)
    main(["compare", str(shown), str(shown), "--html", str(folder / "compare.html")])
    names = {"sweep": many / "sweep.html", "published": many / "published.html", "bench": bench.report_page}
    names |= {"previews": shown / "report.html", "compare": folder / "compare.html"}
    return {"run": two / "report.html", "many": many / "report.html", **names}


@pytest.mark.parametrize("which", ["run", "many", "sweep", "published", "bench", "previews", "compare"])
@pytest.mark.parametrize(("width", "dark", "language"), [(1600, False, "en"), (390, True, "ko"), (1024, True, "en")])
def test_axe_finds_nothing(
    page: Page, pages: dict[str, Path], which: str, width: int, dark: bool, language: str
) -> None:
    axe = pytest.importorskip("axe_core_python.base", reason="scripts/bootstrap dev installs axe-core-python")
    page.open(pages[which], width=width, dark=dark, language=language)
    page.run("document.querySelectorAll('details').forEach((d) => { d.open = true; })")
    page.run(axe.AXE_SCRIPT + "; 1")
    only = f"{{runOnly: {AXE_TAGS}}}"
    found = page.promised(f"axe.run({only}).then((r) => r.violations.map((v) => [v.id, v.nodes.map((n) => n.html)]))")
    assert found == []


def inks(page: Page, names: tuple[str, ...]) -> dict[str, str]:
    return {name: page.run(f"colour('{name}')") for name in names}


def contrast(one: str, other: str) -> float:
    """WCAG 2.1: the lighter colour's luminance over the darker one's."""
    bright, dim = sorted((luminance(one), luminance(other)), reverse=True)
    return (bright + 0.05) / (dim + 0.05)


def luminance(colour: str) -> float:
    parts = (int(colour[n : n + 2], 16) / 255 for n in (1, 3, 5))
    red, green, blue = (p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts)
    return 0.2126 * red + 0.7152 * green + 0.0722 * blue


@pytest.mark.parametrize("dark", [False, True])
def test_marks_stand_out_and_colours_mean_one_thing(page: Page, pages: dict[str, Path], dark: bool) -> None:
    """Each mark has a contrast of 3 to its ground, and lines have no colour of a part."""
    page.open(pages["run"], dark=dark)
    parts, lines, grounds = inks(page, PARTS_INKS), inks(page, LINE_INKS), inks(page, ("ground", "panel"))
    weak = [
        (name, round(contrast(ink, ground), 2))
        for name, ink in (parts | lines).items()
        for ground in grounds.values()
        if contrast(ink, ground) < MARK_CONTRAST
    ]
    assert weak == []
    assert [pair for pair in combinations((parts | lines).items(), 2) if pair[0][1] == pair[1][1]] == []
    style = (PAGE / "page.css").read_text()
    assert set(re.findall(r"--(\w+): #", style)) - {*PARTS_INKS, *LINE_INKS} == {
        "ground", "panel", "ink", "line", "warn", "unused",
    }  # fmt: skip


def test_no_two_of_many_lines_look_the_same(page: Page, pages: dict[str, Path]) -> None:
    page.open(pages["many"])
    looks = page.run("[...Array(40).keys()].map((n) => ink_of_line(n) + dash_of_line(n).join())")
    assert len(set(looks)) == 40


def test_the_slow_rank_of_16_is_pointed_out(page: Page, pages: dict[str, Path]) -> None:
    page.open(pages["many"])
    assert "▸ A frame marks the slow rank 11." in page.run("document.getElementById('timeline').textContent")
    assert page.run("[...document.querySelectorAll('tr.marked th')].map((h) => h.textContent)") == ["11"]
    red = """(() => { const c = document.querySelector('#timeline canvas'), [r, g, b] = colour('bad').match(/\\w\\w/g)
      .map((h) => parseInt(h, 16)), rows = new Set(), d = c.getContext('2d').getImageData(0, 0, c.width, c.height).data;
      for (let n = 0; n < d.length; n += 4) if (d[n] === r && d[n + 1] === g && d[n + 2] === b)
        rows.add(Math.floor(n / 4 / c.width / 24));
      return [...rows]; })()"""
    assert {11} <= set(page.run(red)) <= {10, 11}


def focus(page: Page, selector: str) -> None:
    page.run(f"document.querySelector({selector!r}).focus()")


def test_pieces_of_the_timeline_by_keyboard(page: Page, pages: dict[str, Path]) -> None:
    """Comma and period go to the piece before and after, page keys to other ranks; what is there is said."""
    page.open(pages["run"])
    focus(page, "#timeline canvas")
    tip = "document.getElementById('tip').textContent"
    heard = []
    for _ in range(6):
        page.key(".")
        heard.append(page.run(tip))
    assert heard[0].startswith("rank 0: setup\nfrom 0.000 s, 500.00 ms")
    assert heard[3].startswith("rank 0: outside blocks\n")
    assert "step 0, 2 rows" in heard[3]
    assert heard[4].startswith("rank 0: waiting: rank 1 (ulysses)\n")
    assert heard[5].startswith("rank 0: communication: ulysses\n")
    assert heard[5].endswith("step 0, 2 rows\n1.00 kB sent")
    page.key(",")
    assert page.run(tip) == heard[4]
    page.key("PageDown")
    assert page.run(tip).startswith("rank 1: outside blocks")
    assert page.run("document.getElementById('tip').getAttribute('aria-live')") == "polite"
    page.key("Tab")
    assert page.run("document.getElementById('tip').hidden") is True


def test_values_of_a_plot_by_pointer_and_keyboard(page: Page, pages: dict[str, Path]) -> None:
    page.open(pages["run"])
    plot = "document.querySelectorAll('#timeline canvas')[1]"
    page.run(f"{plot}.scrollIntoView({{ block: 'center' }}); {plot}.focus()")
    page.key("ArrowRight")
    page.key("ArrowRight")
    said: str = page.run("document.getElementById('tip').textContent")
    assert re.fullmatch(r"GPU use, \d\.\d\d s\nGPU 0: 90%\nGPU 1: 60%", said)
    assert page.run(f"{plot}.getAttribute('aria-valuetext')") == said.replace("\n", ", ")
    box: dict[str, Any] = page.run(f"{plot}.getBoundingClientRect().toJSON()")
    page.call("Input.dispatchMouseEvent", type="mouseMoved", x=box["x"] + box["width"] / 2, y=box["y"] + 20)
    pointed = page.run("document.getElementById('tip').textContent")
    assert pointed.startswith("GPU use, 1")
    assert pointed != said


def test_a_table_is_sorted_by_keyboard(page: Page, pages: dict[str, Path]) -> None:
    """By number, with what is unknown at the end; and pressed again, the other way round."""
    page.open(pages["many"])
    column = "[...document.querySelectorAll('#ranks tbody')[0].rows].map((r) => r.cells[0].textContent)"
    assert page.run(column) == [str(n) for n in range(16)]
    page.run("document.querySelector('#ranks thead button').focus()")
    page.key("Enter")
    page.key("Enter")
    assert page.run(column) == [str(n) for n in reversed(range(16))]
    sort = "document.querySelector('#ranks thead th').getAttribute('aria-sort')"
    assert page.run(sort) == "descending"
    rows = "['–', '2.0 GB/s', '30 MB/s', '−1 B/s', '12'].map((x) => el('tr', {}, el('td', {}, x)))"
    texts = page.run(f"sorted_rows({rows}, 0, false).map((r) => r.textContent)")
    assert texts == ["−1 B/s", "12", "30 MB/s", "2.0 GB/s", "–"]


def test_contents_stand_beside_the_text_only_on_wide_screens(page: Page, pages: dict[str, Path]) -> None:
    shown = "document.getElementById('contents').offsetParent !== null || getComputedStyle(contents).display !== 'none'"
    for width, wide in ((1024, False), (1380, True), (1600, True)):
        page.open(pages["run"], width=width)
        assert page.run(shown) is wide
        apart = "document.getElementById('contents').getBoundingClientRect().right <= main.getBoundingClientRect().left"
        assert page.run(apart) is True or not wide
    page.run("document.querySelector('#contents a[href=\"#ranks\"]').click()")
    assert page.run("location.hash") == "#ranks"
    page.open(pages["run"], width=1600, media="print")
    assert page.run(shown) is False


def test_files_beside_the_page_are_linked(page: Page, pages: dict[str, Path]) -> None:
    page.open(pages["run"])
    links = page.run("[...document.querySelectorAll('#files a')].map((a) => a.getAttribute('href'))")
    assert links == ["report.json", "report.md", "ranks.csv", "metrics.prom", "trace.json"]
    assert all((pages["run"].parent / name).is_file() for name in links)


def test_print_keeps_the_colours_of_the_legend(page: Page, pages: dict[str, Path]) -> None:
    page.open(pages["run"], media="print")
    kept = "[...new Set([...document.querySelectorAll('.legend i, .stack i')].map((e) => getComputedStyle(e)[{0}]))]"
    assert page.run(kept.replace("{0}", "'printColorAdjust'")) == ["exact"]
