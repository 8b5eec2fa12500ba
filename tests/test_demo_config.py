"""`model=demo` is the model that was trained: its config beside the weights, key by key."""

import json
from pathlib import Path

from opensora_launch.machine.find_machine import NOTHING
from opensora_launch.model.weight_files import check_files
from opensora_launch.request.compose import compose
from opensora_launch.request.final_config import final_config
from opensora_launch.schema.config import RunConfig

CKPTS = Path(__file__).parent.parent / "opensora_launch/demo/ckpts"


def demo(*overrides: str) -> RunConfig:
    return final_config(compose(["model=demo", *overrides]).points[0].run, NOTHING).run


def test_the_configs_say_what_the_weights_say():
    trained, run = json.loads((CKPTS / "config.json").read_text()), demo()
    for part, values in (("mmdit", run.model.mmdit), ("vae", run.model.vae), ("text", run.model.text)):
        assert {k: getattr(values, k) for k in trained[part]} == trained[part]
    assert {k: getattr(run.sampling, k) for k in trained["sampling"]} == trained["sampling"]


def test_its_files_are_whole_and_found_from_anywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = demo()
    assert Path(run.model.folder) == CKPTS
    assert check_files(run.model) == []


def test_a_users_video_and_steps_still_win():
    run = demo("video=tiny", "sampling.num_steps=3")
    assert (run.video.width_px, run.sampling.num_steps, run.sampling.guidance) == (96, 3, 3.0)
