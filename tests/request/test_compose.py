"""Every group composes, every wrong key, type and value is one clear line, and Hydra's own ways work."""

import shlex
from dataclasses import FrozenInstanceError, fields, is_dataclass, replace
from pathlib import Path
from typing import Any, get_type_hints

import pytest

from opensora_launch.cli import main
from opensora_launch.errors import UserError
from opensora_launch.request.catalogue import config_folder, groups, keys
from opensora_launch.request.compose import compose
from opensora_launch.schema.config import RunConfig
from opensora_launch.schema.plain import plain

GOLDEN = Path(__file__).parents[1] / "golden" / "config_keys.txt"
ROOT = Path(__file__).parents[2]


def run_of(*overrides: str, config_dir: Path | None = None) -> RunConfig:
    return compose(overrides, multirun=False, config_dir=config_dir).points[0].run


def problems_of(*overrides: str, multirun: bool = False) -> list[str]:
    with pytest.raises(UserError) as caught:
        compose(overrides, multirun=multirun, config_dir=None)
    return list(caught.value.problems)


@pytest.mark.parametrize(
    ("group", "choice"), [(group.name, choice.name) for group in groups() for choice in group.choices]
)
def test_every_choice_composes_and_says_what_it_is(group: str, choice: str) -> None:
    assert isinstance(run_of(f"{group}={choice}"), RunConfig)
    assert {one.name: one.about for each in groups() if each.name == group for one in each.choices}[choice]


def test_all_keys_and_their_defaults(request: pytest.FixtureRequest) -> None:
    run = run_of("model=open_sora_v2")
    lines = []
    for key in keys():
        value: object = run
        for part in key.path.split("."):
            value = getattr(value, part, None)
        lines.append(f"{key.path} = {value if value is not None else 'null'}  ({key.kind})")
    text = "\n".join(lines) + "\n"
    if request.config.getoption("--update-golden"):
        GOLDEN.write_text(text, encoding="utf-8")
    assert GOLDEN.read_text(encoding="utf-8") == text


def test_yaml_defaults_are_the_schemas() -> None:
    """The two places where a default stands do not disagree."""
    assert plain(run_of("model=open_sora_v2")) == plain(RunConfig())


def test_the_tiny_model_brings_its_size_and_steps_unless_the_user_has_others() -> None:
    tiny = run_of("model=tiny")
    assert (tiny.video.height_px, tiny.video.num_frames, tiny.sampling.num_steps) == (64, 17, 6)
    for argv in (["model=tiny", "video=256px", "sampling=default"], ["video=256px", "sampling=default", "model=tiny"]):
        other = run_of(*argv)
        assert (other.video.resolution, other.video.num_frames, other.sampling.num_steps) == ("256px", 17, 50)


def test_the_model_is_chosen_by_what_is_there(empty_folder: Path) -> None:
    composed = compose((), multirun=False, config_dir=None)
    small = "demo" if (config_folder() / "model" / "demo.yaml").exists() else "tiny"
    assert composed.points[0].run.model.name == small
    assert "Open_Sora_v2.safetensors" in composed.model_note
    (empty_folder / "ckpts").mkdir()
    (empty_folder / "ckpts" / "Open_Sora_v2.safetensors").touch()
    composed = compose((), multirun=False, config_dir=None)
    assert (composed.points[0].run.model.name, composed.model_note) == ("open_sora_v2", "")
    composed = compose(("model.folder=elsewhere",), multirun=False, config_dir=None)
    assert composed.points[0].run.model.name == small
    (empty_folder / "in_parts").mkdir()
    (empty_folder / "in_parts" / "Open_Sora_v2.safetensors.index.json").touch()
    composed = compose(("model.folder=in_parts",), multirun=False, config_dir=None)
    assert composed.points[0].run.model.name == "open_sora_v2"


def test_hydras_grammar_works() -> None:
    assert run_of("+n=3", "topology.gpus_per_node=${n}").topology.gpus_per_node == 3
    assert run_of("++video.num_frames=9").video.num_frames == 9
    assert run_of("~layout").layout.dp is None
    assert run_of("model.mmdit.axes_dim=[2,4,10]").model.mmdit.axes_dim == [2, 4, 10]
    assert run_of("sampling.negative_prompt='a, \"b\"'").sampling.negative_prompt == 'a, "b"'


def test_a_sites_own_yaml(empty_folder: Path) -> None:
    site = empty_folder / "site's own, é"
    (site / "topology").mkdir(parents=True)
    (site / "topology" / "lab.yaml").write_text("gpus_per_node: 5\ndevice: cpu\n")
    assert run_of("topology=lab", config_dir=site).topology.gpus_per_node == 5
    (site / "site").mkdir()
    (site / "site" / "night.yaml").write_text("launcher: {timeout_s: 7}\n")
    assert run_of("+site@_global_=night", config_dir=site).launcher.timeout_s == 7
    (site / "topology" / "wrong.yaml").write_text("gpus_per_nod: 5\n")
    with pytest.raises(UserError) as caught:
        run_of("topology=wrong", config_dir=site)
    (line,) = caught.value.problems
    assert "topology/wrong" in line
    assert "did you mean topology.gpus_per_node?" in line
    (site / "topology" / "typed.yaml").write_text("gpus_per_node: many\n")
    with pytest.raises(UserError, match="a whole number or null"):
        run_of("topology=typed", config_dir=site)
    with pytest.raises(UserError, match="no such folder"):
        run_of("topology=lab", config_dir=empty_folder / "gone")
    for text, said in (("gpus_per_node: [5\nb: {", "while parsing"), ("5", "")):
        (site / "topology" / "torn.yaml").write_text(text)
        with pytest.raises(UserError, match="cannot be composed") as caught:
            run_of("topology=torn", config_dir=site)
        (line,) = caught.value.problems
        assert said in line
        assert "torn" in line or not said


@pytest.mark.parametrize(
    ("override", "said"),
    [
        ("video=512px", "video=512px is not known; did you mean 256px?"),
        ("video=786px", "did you mean 768px?"),
        ("hardware=h100", "hardware=h100 is not known; did you mean h100_nvl, h100_pcie or h100_sxm?"),
        ("topology=9gpu", "did you mean 8gpu?"),
        ("vido=256px", "did you mean video?"),
        ("video.num_frame=9", "did you mean video.num_frames?"),
        ("video.qqqq=9", "resolution, aspect_ratio, height_px, width_px, num_frames, fps"),
        ("num_frames=9", "did you mean video.num_frames?"),
        ("model.mmdit.depht=2", "did you mean model.mmdit.depth?"),
        ("video.num_frames=many", "video.num_frames takes a whole number"),
        ("sampling.seed=1.5", "sampling.seed takes a whole number or null"),
        ("sampling.guidance=high", "sampling.guidance takes a number"),
        ("model=demmo", "model=demmo is not known; did you mean demo"),
        ("attention=flash", "attention=flash is not known; did you mean flash4, flash3, flash2 or flash3_fp8?"),
        ("precision=fp8", "precision takes one of auto, bf16, fp16, fp32"),
        ("profile=perhaps", "profile takes true or false"),
        ("model.mmdit.axes_dim=4", "takes a list"),
        ("video.fps.x=4", "no such key"),
        ("sampling.seed=1,2", "add -m for a sweep"),
        ("raining", "a prompt follows --prompt"),
        ("prompt=raining, sea", "--prompt 'raining, sea'"),
        ("prompt=sea", "--prompt"),
        ("sampling.negative_prompt=a cat's eye", "quote the value"),
        ("layout=null", "layout=null is not known; use one of auto"),
        ("video.num_frames=${nothing}", "nothing"),
        ("=3", "neither a flag nor KEY=VALUE"),
        ("hydra.foo=1", "Could not override 'hydra.foo'. To append to your config use +hydra.foo=1"),
        ("+video=256px", "remove the plus"),
        ("topology.gpus_per_node=${oc.env:NOT_SET}", "topology.gpus_per_node: "),
        ("~video.nothing", "does not exist"),
        ("+video.num_frames=9", "num_frames"),
    ],
)
def test_one_clear_line_for_a_wrong_override(override: str, said: str) -> None:
    (line,) = problems_of("model=tiny", override)
    assert said in line
    assert "\n" not in line
    assert "full_key" not in line


def test_all_wrong_overrides_are_said_at_once() -> None:
    lines = problems_of("video=512px", "video.fps=x", "sampling.sed=1", "a b")
    assert len(lines) == 4


def test_wrong_values_of_a_sweep() -> None:
    (line,) = problems_of("video=256px,512px", multirun=True)
    assert line.startswith("video=512px is not known")
    assert "video.fps takes a whole number" in problems_of("video.fps=8,x", multirun=True)[0]


def test_cfg_prints_yaml_only_on_stdout(capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    assert main(["generate", "--cfg", "job", "topology=cpu3", "model=tiny"]) == 0
    config = yaml.safe_load(capsys.readouterr().out)
    assert config["topology"].items() >= {"nodes": 1, "gpus_per_node": 3, "device": "cpu"}.items()
    assert main(["generate", "--cfg", "job", "-p", "video", "model=tiny", "--resolve"]) == 0
    assert yaml.safe_load(capsys.readouterr().out)["num_frames"] == 17
    assert main(["generate", "--cfg", "hydra"]) == 0
    assert "hydra" in yaml.safe_load(capsys.readouterr().out)
    assert main(["generate", "--cfg", "job", "video=512px"]) == 2
    assert main(["generate", "--cfg", "job", "-p", "vido"]) == 2


def test_cfg_of_a_sweep_prints_every_point(capsys: pytest.CaptureFixture[str]) -> None:
    import yaml

    assert main(["generate", "--cfg", "job", "-p", "topology", "-m", "model=tiny", "topology=cpu1,cpu3"]) == 0
    documents = list(yaml.safe_load_all(capsys.readouterr().out))
    assert [d["gpus_per_node"] for d in documents] == [1, 3]


@pytest.mark.parametrize(
    "text", ["a cat's eye", 'say "no", (now)', "ends in \\", 'x\\"y', "50% ${oc.env:HOME}", "été, $(x)"]
)
def test_the_quoting_that_is_advised_works(text: str) -> None:
    (line,) = problems_of("model=tiny", f"sampling.negative_prompt=({text}")
    (advised,) = shlex.split(line.partition("quote the value: ")[2])
    assert run_of("model=tiny", advised).sampling.negative_prompt == f"({text}"


def test_info_says_where_the_config_comes_from(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", "--info", "defaults", "model=tiny"]) == 0
    out = capsys.readouterr().out
    assert "model/tiny" in out
    assert "video/tiny" in out


@pytest.mark.parametrize("part", ["", "model", "model.mmdit", "topology", "hardware", "launcher.slurm", "estimate"])
def test_a_config_is_final(part: str) -> None:
    """Nobody can assign to a field of a composed config, in any part of it. mypy refuses it too."""
    run = run_of("model=tiny")
    config: Any = run
    for name in filter(None, part.split(".")):
        config = getattr(config, name)
    before = plain(run)
    for item in fields(config):
        with pytest.raises(FrozenInstanceError, match=f"{item.name} is final"):
            setattr(config, item.name, None)
    assert plain(run) == before
    assert replace(config) == config


def test_every_part_of_the_schema_is_final() -> None:
    """Also parts that are added later."""
    parts, waiting = list[Any](), list[Any]([RunConfig])
    while waiting:
        part = waiting.pop()
        parts.append(part)
        waiting += [hint for hint in get_type_hints(part).values() if is_dataclass(hint)]
    assert len(parts) > 10
    assert all(part.__setattr__ is not object.__setattr__ for part in parts)
