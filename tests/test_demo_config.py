"""`model=demo` and its siblings are the models that were trained: the configs beside the weights, key by key."""

import json
from dataclasses import asdict
from pathlib import Path

import pytest

from opensora_launch.machine.find_machine import NOTHING
from opensora_launch.model.weight_files import check_files
from opensora_launch.request.compose import compose
from opensora_launch.request.final_config import final_config
from opensora_launch.schema.config import RunConfig

CKPTS = Path(__file__).parent.parent / "opensora_launch/demo/ckpts"
MODELS = ("demo", "demo_dc_ae", "demo_flux")
KEYS = ("trained_frames", "mmdit_file", "vae_file")


def demo(*overrides: str, model: str = "demo") -> RunConfig:
    return final_config(compose([f"model={model}", *overrides]).points[0].run, NOTHING).run


@pytest.mark.parametrize("name", MODELS)
def test_the_configs_say_what_the_weights_say(name):
    trained, run = json.loads((CKPTS / f"config{name.removeprefix('demo')}.json").read_text()), demo(model=name)
    for part, values in (("mmdit", run.model.mmdit), ("vae", run.model.vae), ("text", run.model.text)):
        own = asdict(values)
        assert own | trained[part] == own
    assert {k: getattr(run.sampling, k) for k in trained["sampling"]} == trained["sampling"]
    assert {k: getattr(run.model, k) for k in KEYS} == {k: trained[k] for k in KEYS}
    assert (run.model.name, run.video.num_frames) == (name, trained["trained_frames"])


@pytest.mark.parametrize("name", MODELS)
def test_its_files_are_whole_and_found_from_anywhere(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = demo(model=name)
    assert Path(run.model.folder) == CKPTS
    assert check_files(run.model) == []


def test_a_users_video_and_steps_still_win():
    run = demo("video=tiny", "sampling.num_steps=3")
    assert (run.video.width_px, run.sampling.num_steps, run.sampling.guidance) == (96, 3, 3.0)
