"""The videos on the page, in a real browser: by relative paths, loaded when they come near, and missing ones named."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path

import pytest

from opensora_launch.media.contact_sheet import contact_sheet
from opensora_launch.media.video import save_png, save_video
from opensora_launch.rundir import RunDir
from opensora_launch.runs.finished_videos import record_failed
from tests.media.clips import noise
from tests.report.browser import ANSWER_S, Page
from tests.report.checked import build
from tests.report.synthetic import a_plan, plain_simulation, write_run

pytestmark = pytest.mark.browser
MANY = 200


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A batch whose videos are all made but two: the second failed, and the last is missing."""
    prompts = [f"video {n} of <b>rain</b>" for n in range(MANY)]
    plan = a_plan(2, prompts=prompts)
    made = [video.name for n, video in enumerate(plan.videos) if n not in (1, MANY - 1)]
    run = RunDir(write_run(tmp_path_factory.mktemp("many") / "run", plan, [plain_simulation(2).events()], done=made))
    frames = noise(9, 32, 48, 3)
    save_video(run.samples / made[0], frames, 24)
    save_png(run.sheet(made[0]), contact_sheet(frames))
    for name in made[1:]:
        shutil.copy(run.samples / f"{made[0]}.mp4", run.samples / f"{name}.mp4")
        shutil.copy(run.sheet(made[0]), run.sheet(name))
    record_failed(run, {"0001_0": "its latents are not finite"})
    build(run.path)
    return run


def wait_for(page: Page, script: str) -> None:
    end = time.monotonic() + ANSWER_S
    while not page.run(script):
        assert time.monotonic() < end, script
        time.sleep(0.05)


def test_a_gallery_of_many_loads_what_is_near(page: Page, many: RunDir) -> None:
    page.open(many.report_page, width=390)
    assert many.report_page.stat().st_size < 300_000
    assert page.run("document.querySelectorAll('.clip').length") == MANY
    assert page.run("[...new Set([...document.querySelectorAll('video')].map((v) => v.preload))].join()") == "none"
    page.run("document.querySelector('.clip').scrollIntoView()")
    wait_for(page, "!!document.querySelector('video[poster]')")
    assert page.run("document.querySelector('video').getAttribute('poster')") == "samples/0000_0.sheet.png"
    assert page.run("document.querySelectorAll('video[poster]').length") < 8
    page.run("document.querySelector('#samples summary').click()")
    page.run("[...document.querySelectorAll('.clip')].at(-2).scrollIntoView()")
    wait_for(page, "[...document.querySelectorAll('video')].at(-1).hasAttribute('poster')")
    assert page.run("document.querySelectorAll('video[poster]').length") < MANY / 4
    texts = page.run("[...document.querySelectorAll('.clip')].map((c) => c.textContent)")
    assert "video 0 of <b>rain</b>" in texts[0]
    assert "Seed 42. 336 × 192 px, 129 frames, 24 fps. 50 steps, guidance 7.5, t2v." in texts[0]
    assert "0001_0: its latents are not finite" in texts[1]
    assert "0199_0: not made" in texts[-1]


def test_a_video_plays(page: Page, many: RunDir) -> None:
    page.open(many.report_page)
    page.run("document.querySelector('video').play()")
    wait_for(page, "document.querySelector('video').currentTime > 0 || document.querySelector('video').ended")
    assert page.run("document.querySelector('video').videoWidth") == 48


def test_any_name_is_a_link(page: Page, tmp_path: Path) -> None:
    """A name by --name may hold what has a meaning in addresses."""
    name = "50% of #1 & 비, it's"
    plan = a_plan(2, prompts=["rain"])
    plan = replace(plan, videos=(replace(plan.videos[0], name=name),))
    run = RunDir(write_run(tmp_path / "run", plan, [plain_simulation(2).events()], done=[name]))
    frames = noise(9, 32, 48, 3)
    save_video(run.samples / name, frames, 24)
    save_png(run.sheet(name), contact_sheet(frames))
    build(run.path)
    page.open(run.report_page)
    page.run("document.querySelector('.clip').scrollIntoView()")
    wait_for(page, "!!document.querySelector('video[poster]')")
    page.run("document.querySelector('video').play()")
    wait_for(page, "document.querySelector('video').currentTime > 0 || document.querySelector('video').ended")
    assert page.run("decodeURIComponent(document.querySelector('.clip a').href)").endswith(f"/samples/{name}.mp4")


@pytest.mark.parametrize("sheets", [True, False])
def test_a_file_that_is_missing_is_named(page: Page, many: RunDir, tmp_path: Path, sheets: bool) -> None:
    """Where the page was copied without its folder, also where videos have no contact sheet."""
    text = many.report_page.read_text()
    alone = tmp_path / "report.html"
    alone.write_text(text if sheets else text.replace(".sheet.png", ".none").replace('"sheet":"', '"was":"'))
    page.open(alone)
    page.run("document.querySelector('.clip').scrollIntoView()")
    wait_for(page, "!document.querySelector('.missing').hidden")
    said = "samples/0000_0.mp4 cannot be shown: keep the folder samples beside this page."
    assert page.run("document.querySelector('.missing').textContent") == said


def test_one_frame_is_an_image(page: Page, tmp_path: Path) -> None:
    plan = a_plan(2, video__num_frames=1)
    run = RunDir(write_run(tmp_path / "run", plan, [plain_simulation(2).events()]))
    save_video(run.samples / "0000_0", noise(1, 32, 48, 3), 24)
    run.record("0000_0").write_text('{"file": "0000_0.png"}')
    build(run.path)
    page.open(run.report_page)
    page.run("document.querySelector('.clip img').scrollIntoView()")
    wait_for(page, "document.querySelector('.clip img').naturalWidth === 48")
    assert page.run("document.querySelector('.clip img').alt") == "raining, sea"


def test_paper_shows_contact_sheets(page: Page, many: RunDir) -> None:
    page.open(many.report_page, media="print")
    assert page.run("[...document.querySelectorAll('.clip video')].filter((v) => v.offsetParent).length") == 0
    wait_for(page, "document.querySelector('.clip .paper').naturalWidth === 144")


def test_a_first_frame_is_linked_and_stands_for_a_video_that_is_not_made(page: Page, tmp_path: Path) -> None:
    plan = a_plan(2, prompts=["rain", "snow"])
    plan = replace(plan, videos=tuple(replace(video, image=True) for video in plan.videos))
    run = RunDir(write_run(tmp_path / "run", plan, [plain_simulation(2).events()], done=["0000_0"]))
    for name in ("0000_0", "0001_0"):
        run.images.samples.mkdir(parents=True, exist_ok=True)
        save_video(run.images.samples / name, noise(1, 32, 48, 3), 24)
        run.images.record(name).write_text(json.dumps({"file": f"{name}.png"}))
    build(run.path)
    page.open(run.report_page)
    links = "[...document.querySelectorAll('.clip a')].map((a) => a.getAttribute('href')).join()"
    assert page.run(links) == "samples/0000_0.mp4,images/samples/0000_0.png,images/samples/0001_0.png"
    page.run("document.querySelectorAll('.clip')[1].scrollIntoView()")
    wait_for(page, "document.querySelector('.clip img[src$=\"images/samples/0001_0.png\"]')?.naturalWidth === 48")
