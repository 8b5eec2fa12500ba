"""report.html in a real browser: three widths, light and dark, two languages; it fits, it draws, it says no error."""

import json
import re
import shutil
import subprocess
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image

from opensora_launch.report.build import build_sweep
from opensora_launch.report.published import PEERS, peer_lines, published
from opensora_launch.report.sweep import SweepPoint, sweep_report
from opensora_launch.report.wording import message, say
from tests.report.checked import build
from tests.report.sampled import on_gpus
from tests.report.sweeps import read_sweep_report
from tests.report.synthetic import a_plan, plain_simulation, write_run

LARGE = {"device": "cuda", "model.name": "open_sora_v2", "height_px": 576, "width_px": 1024}
ROOT = Path(__file__).parents[2]
PAGE = ROOT / "opensora_launch" / "report" / "page"
BROWSERS = ("chromium", "chromium-browser", "google-chrome")
FLAGS = (
    "--headless", "--no-sandbox", "--disable-gpu", "--disable-quic", "--no-first-run", "--disable-sync",
    "--disable-background-networking", "--disable-component-update", "--hide-scrollbars",
)  # fmt: skip
DARK = ("--blink-settings=preferredColorScheme=0", "--force-dark-mode")
FIRST = (
    "<script>addEventListener('error', (e) => document.documentElement.setAttribute('data-error', e.message))</script>"
)
LAST = """<script>
const all = document.querySelectorAll("body *");
const outside = (e) => e.getBoundingClientRect().right > innerWidth + 1 && !e.closest(".scroll, svg, .skip");
const wide = [...all].filter(outside);
document.body.dataset.wide = wide.map((e) => e.tagName + "#" + e.id + "." + e.className).join(" ");
document.body.dataset.width = innerWidth;
document.body.dataset.ground = getComputedStyle(document.body).backgroundColor;
document.body.dataset.inked = [...document.querySelectorAll("canvas")].filter((c) => {
  const pixels = c.getContext("2d").getImageData(0, 0, c.width, c.height).data;
  return new Set([...Array(pixels.length / 4).keys()].map((n) => pixels.slice(4 * n, 4 * n + 3).join())).size > 3;
}).length;
document.body.dataset.canvases = document.querySelectorAll("canvas").length;
</script>"""


def made_run(where: Path) -> Path:
    """Two ranks on a GPU each, one of them slow, sampled all the while; its folder."""
    sim = plain_simulation(2, slow=[1.0, 1.5])
    plan = a_plan(2, prompts=("</script><script>alert(1)</script> raining, sea",))
    folder = write_run(where / "20261120-190000", plan, [sim.events()], done=["0000_0"])
    on_gpus(folder)
    environment = {"profile": "workstation", "set": {"NCCL_DEBUG": "WARN"}, "environment": {"NCCL_DEBUG": "WARN"}}
    (folder / "attempts/0/environment.json").write_text(json.dumps(environment))
    build(folder)
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return made_run(tmp_path_factory.mktemp("page"))


@pytest.fixture(scope="module")
def curve(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sweep")
    limits = [message("other_hosts", hosts=["x <b>y</b>"])]
    points = [SweepPoint("tiny", n, (10.0 / n + 2, 10.0 / n + 2.5), "1: dp1", "a", "a/report.html") for n in (1, 2, 4)]
    build_sweep(
        folder, sweep_report("bench-1", points, version="0", device="a CPU", peers=peer_lines(LARGE), unknown=limits)
    )
    read_sweep_report(folder)
    return folder


def test_the_page_is_one_file_without_any_other(run: Path) -> None:
    text = (run / "report.html").read_text()
    assert not re.search(r"""(?:src|href)=["']?(?:https?:)?//|@import|url\(""", text)
    assert text.count("<script") == 2
    assert "alert(1)</script>" not in text
    data = json.loads(text.partition('id="data">')[2].partition("</script>")[0])
    assert data["report"] == json.loads((run / "report.json").read_text())
    assert [rank["rank"] for rank in data["timeline"]["ranks"]] == [0, 1]
    assert len(text) < 150_000


def test_published_figures_as_a_report(tmp_path: Path) -> None:
    points, weaker = published(ROOT / "docs/benchmarks/published_scaling.json")
    data = sweep_report("Published scaling", points, version="0", kind="published", unknown=weaker)
    open_sora = [r for r in data["table"] if r["name"] == "opensora2-11b-768px-h100"]
    assert [(r["gpus"], round(100 * r["efficiency"], 1)) for r in open_sora] == [
        (1, 100.0), (2, 95.9), (4, 88.8), (8, 75.0),
    ]  # fmt: skip
    small = [round(100 * r["efficiency"], 1) for r in data["table"] if r["name"] == "opensora2-11b-256px-h100"]
    assert small == [100.0, 75.0, 44.1]
    (fit,) = [a for a in data["amdahl"] if a["name"] == "opensora2-11b-768px-h100"]
    assert 60 < fit["serial_s"] < 85
    names = {r["name"] for r in data["table"]}
    assert "xdit-hunyuanvideo-13b-720p-h100" in names
    assert "hunyuan-readme-720p-h100" not in names  # the same measurement, with a cell of another table
    above = [line for line in data["unknown"] if line["code"] == "above_one_published"]
    assert say(above[0]).startswith("xdit-hunyuanvideo-13b-720p-h100 on 2 GPUs: an efficiency of 1.029 was published.")
    baselines, everywhere = weaker
    assert (baselines["code"], everywhere) == (
        "offload_in_baselines",
        message("offload_everywhere", tables=["opensora2-11b-256px-h100"]),
    )
    assert "wan2.2-t2v-a14b-720p-h100" in baselines["tables"]
    build_sweep(tmp_path, data)
    assert {b["kind"] for b in read_sweep_report(tmp_path)["baselines"]} == {"published"}
    text = (tmp_path / "report.md").read_text()
    assert "| opensora2-11b-768px-h100" in text
    assert "- opensora2-11b-768px-h100: the baseline is 1 GPU, 1656.00 s, published, hpcaitech/Open-Sora" in text


def test_peers_are_rows_of_the_published_file() -> None:
    """And none of them is better than ideal."""
    rows = json.loads((ROOT / "docs/benchmarks/published_scaling.json").read_text())
    known = {(r["n_gpus"], float(r["seconds"])) for r in rows if r["seconds"] and "h100" in r["table"]}
    for peer in PEERS:
        assert {(n, seconds) for n, seconds in peer.seconds.items()} <= known
    every = [line for work in (LARGE, LARGE | {"height_px": 256, "width_px": 256}) for line in peer_lines(work)]
    assert max(p["efficiency"] for line in every for p in line["points"]) <= 1.0
    notes = {line["name"]: line["note"] for line in every}
    assert notes["Wan2.2 A14B, 720p, H100"] == message("offload_one")


def test_published_figures_stand_only_beside_work_of_their_kind() -> None:
    assert [line["name"] for line in peer_lines(LARGE | {"height_px": 192, "width_px": 336})] == [PEERS[1].name]
    assert len(peer_lines(LARGE)) == 3
    assert peer_lines(LARGE | {"device": "cpu"}) == peer_lines(LARGE | {"model.name": "tiny"}) == []


class Words(HTMLParser):
    """Attributes of html and body, and the text outside scripts."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.found: dict[str, dict[str, str | None]] = {}
        self.said: list[str] = []
        self.skip = False
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.skip = tag in ("script", "style")
        self.found.setdefault(tag, dict(attrs))

    def handle_data(self, data: str) -> None:
        if not self.skip:
            self.said.append(data)

    @property
    def text(self) -> str:
        return " ".join(" ".join(self.said).split())


def browse(page: Path, tmp_path: Path, *options: str) -> bytes:
    browser = next((found for name in BROWSERS if (found := shutil.which(name))), None)
    if browser is None:
        pytest.skip(f"none of these is installed: {', '.join(BROWSERS)}")
    url, flags = page.resolve().as_uri(), [o for o in options if o.startswith("--")]
    command = [browser, *FLAGS, f"--user-data-dir={tmp_path / 'profile'}", *flags]
    query = "".join(o for o in options if o.startswith("?"))
    return subprocess.run([*command, url + query], check=True, capture_output=True, timeout=100).stdout


def dom(page: Path, tmp_path: Path, width: int, *options: str) -> Words:
    """What the browser made of the page, with what our probe saw in it."""
    probed = tmp_path / "probed.html"
    text = page.read_text().replace("<head>", "<head>" + FIRST, 1)
    probed.write_text(text.replace("</body>", LAST + "</body>"))
    made = browse(probed, tmp_path, "--dump-dom", f"--window-size={width},900", *options).decode()
    found = Words(made)
    assert found.found["html"].get("data-error") is None
    assert found.found["body"]["data-wide"] == ""
    return found


@pytest.mark.browser
@pytest.mark.parametrize(("width", "dark"), [(390, True), (820, False), (1280, True)])
def test_the_page_of_a_run(run: Path, tmp_path: Path, width: int, dark: bool) -> None:
    found = dom(run / "report.html", tmp_path, width, *(DARK if dark else ()), "?lang=en")
    body = found.found["body"]
    assert found.found["html"]["lang"] == "en"
    ground = [int(n) for n in re.findall(r"\d+", body["data-ground"] or "")[:3]]
    assert (sum(ground) < 150) == dark
    assert body["data-inked"] == body["data-canvases"] == "13"  # the timeline, eleven lines of the GPUs, the CPU
    for said in (
        "Run 20261120-190000", "Rank 1 is slow: its GPU was throttled (host-a, GPU 1)",
        "Baseline (predicted): Estimated time on one rank, from run 20261120-190000", "This overstates the efficiency.",
        "too hot (hardware) in 100% of the readings", "1 memory error that ECC could not correct",
        "Where the efficiency went", "Power", "0 Stub GPU", "host-a refused: processes (Not Supported)", "Karp–Flatt",
        "</script><script>alert(1)</script> raining, sea",
        "opensora-launch generate video=256px topology=cpu2 --prompts /",
    ):  # fmt: skip
        assert said in found.text, said


@pytest.mark.browser
def test_the_page_in_korean(run: Path, curve: Path, tmp_path: Path) -> None:
    found = dom(run / "report.html", tmp_path, 390, "?lang=ko")
    assert found.found["html"]["lang"] == "ko"
    assert "1번 랭크가 느립니다: GPU 스로틀링 (host-a, GPU 1)" in found.text
    assert "효율 손실 내역" in found.text
    swept = dom(curve / "report.html", tmp_path, 820, "?lang=ko")
    assert "직렬" in swept.text
    assert "tiny: 기준은 GPU 1개, 12.25초(직접 측정, 실행 a)" in swept.text
    assert "x <b>y</b>" in swept.text


@pytest.mark.browser
@pytest.mark.parametrize("width", [390, 820, 1280])
def test_pictures_of_both_pages(run: Path, curve: Path, tmp_path: Path, width: int) -> None:
    for page in (run, curve):
        for dark in (False, True):
            out = tmp_path / f"{page.name}-{dark}.png"
            browse(page / "report.html", tmp_path, f"--window-size={width},1400", f"--screenshot={out}", *DARK * dark)
            picture = Image.open(out).convert("RGB")
            colours = picture.getcolors(1 << 20)
            assert colours is not None
            assert len(colours) > 50  # lines and text, not an empty page
            usual = max(colours)[1]
            assert isinstance(usual, tuple)
            assert (sum(usual) < 150) == dark
