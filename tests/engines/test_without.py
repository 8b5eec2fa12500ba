"""ColossalAI not chosen: nothing of it is imported. Chosen and not there: one line says what to do."""

import os
import subprocess
import sys
from importlib import metadata
from pathlib import Path

import pytest

from opensora_launch.cli import main
from opensora_launch.doctor import engine_packages as require
from opensora_launch.doctor.engine_packages import engine_problems
from opensora_launch.schema.config import Engine

ROOT = Path(__file__).parents[2]


def missing(name: str) -> str:
    raise metadata.PackageNotFoundError(name)


@pytest.mark.parametrize(
    ("version", "absent", "said"),
    [
        (
            missing,
            (),
            "engine=colossalai needs ColossalAI 0.5.0, but it is not installed: run scripts/install_colossalai",
        ),
        (
            lambda name: "0.3.8",
            (),
            "engine=colossalai needs ColossalAI 0.5.0, but 0.3.8 is installed: run scripts/inst",
        ),
        (
            lambda name: "0.5.0",
            ("peft", "einops"),
            "ColossalAI 0.5.0 is installed, but it also needs einops, peft",
        ),
    ],
    ids=["missing", "another version", "without what it needs"],
)
def test_what_is_wrong_is_one_line(version, absent, said, monkeypatch):
    monkeypatch.setattr(metadata, "version", version)
    monkeypatch.setattr(require, "find_spec", lambda name: None if name in absent else object())
    (line,) = engine_problems(Engine.colossalai)
    assert line.startswith(said)
    assert line.endswith("or use engine=native")
    assert engine_problems(Engine.native) == []


@pytest.mark.parametrize("verb", [["generate", "--prompt", "a"], ["verify"]])
def test_the_command_line_refuses_before_ranks_start(verb, monkeypatch, capsys):
    monkeypatch.setattr(metadata, "version", missing)
    assert main([*verb, "model=tiny", "topology=cpu2", "engine=colossalai"]) == 2
    lines = capsys.readouterr().err.splitlines()
    assert sum("engine=colossalai needs ColossalAI 0.5.0" in line for line in lines) == 1


@pytest.mark.slow
def test_the_native_engine_imports_and_sets_nothing_of_it(tmp_path):
    """As a whole run sees it: a rank's modules, a verified plan, and the variable that importing it sets."""
    code = """
import os, sys
from opensora_launch.worker import main
code = main(["--prompt", "a", "model=tiny", "sampling.num_steps=1", f"runs_dir={sys.argv[1]}", "video.num_frames=1"])
foreign = {"colossalai", "bitsandbytes", "peft", "galore_torch"} & set(sys.modules)
ours = {name for name in sys.modules if name.startswith("opensora_launch.engines.colossal.")}
loaded = sorted(foreign | ours - {"opensora_launch.doctor.engine_packages"})
sys.exit(f"{code} {loaded} {os.environ.get('CUDA_DEVICE_MAX_CONNECTIONS')}")
"""
    env = {k: v for k, v in os.environ.items() if k not in ("RANK", "CUDA_DEVICE_MAX_CONNECTIONS")}
    argv = [sys.executable, "-c", code, str(tmp_path)]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=env)
    assert done.stderr.splitlines()[-1] == "0 [] None", done.stderr
