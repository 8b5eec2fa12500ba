"""Compiled blocks compute what eager ones do, without graph breaks, and uneven shares compile nothing anew."""

import json
import os
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
import torch

from opensora_launch.errors import UserError
from opensora_launch.model.block_parts import EAGER, Parts
from opensora_launch.schema.kernel_kinds import Compile
from opensora_launch.worker import compiled_parts
from opensora_launch.worker.compiled_parts import CACHE, cache_folder, chosen_parts, why_not_compiled

MOST_GRAPHS = 10  # four functions, one of them for two kinds of weights, each for one row and for several
CPU = torch.device("cpu")
LEAST = {"float32": 1e-6, "bfloat16": 4e-3}  # errors that are always allowed
CONFIGS = {"open-sora": {}, "flux": {"fused_qkv": True, "use_liger_rope": False}}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("dtype", "config", "fp8"),
    [(dtype, config, False) for dtype in LEAST for config in ("open-sora", "flux")] + [("bfloat16", "flux", True)],
)
def test_compiled_equals_eager(dtype: str, config: str, fp8: bool) -> None:
    """As near to exact as eager blocks, up to half a bit: between kernels, compiled ones round less often."""
    if lacking := why_not_compiled(CPU):
        pytest.skip(f"this machine {lacking}")
    least, asked = LEAST[dtype], json.dumps({"dtype": dtype, "config": CONFIGS[config], "fp8": fp8})
    argv = [sys.executable, str(Path(__file__).parent / "compiled.py"), asked]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=Path(__file__).parents[2])
    assert done.returncode == 0, done.stderr
    found = json.loads(done.stdout)
    assert all(compiled <= max(1.5 * eager, least) for eager, compiled in found["errors"]), found
    assert found["breaks"] == {}
    first, last = found["graphs"]
    assert first == last <= MOST_GRAPHS * (1 + fp8), found  # the first and the last block compute in full
    assert all(compiled <= max(1.5 * eager, 4 * least) for eager, compiled in found["vae_errors"]), found
    assert found["vae_graphs"] <= 4, "two functions, each for one frame and for several"


def test_off_is_eager() -> None:
    assert chosen_parts(Compile.off, CPU) is EAGER


def test_without_a_compiler_auto_is_eager_and_on_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert chosen_parts(Compile.auto, CPU) is EAGER
    with pytest.raises(UserError, match=r"compile=on: rank 0 has no compiler \(g\+\+ or clang\+\+, or .* CXX names\)"):
        chosen_parts(Compile.on, CPU)


def test_pythons_header_is_needed_too(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    monkeypatch.setenv("CXX", sys.executable)
    assert why_not_compiled(CPU) == "has no Python.h (Debian: python3-dev)"
    (tmp_path / "Python.h").touch()
    assert why_not_compiled(CPU) == ""


def test_all_ranks_compile_or_none() -> None:
    """Another rank's problem counts as one's own."""
    assert chosen_parts(Compile.auto, CPU, lambda mine: [mine, "has no triton"]) is EAGER
    with pytest.raises(UserError, match="rank 1 has no triton"):
        chosen_parts(Compile.on, CPU, lambda mine: [mine, "has no triton"])


def test_results_are_kept_by_version(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv(CACHE, "")
    monkeypatch.delenv(CACHE)
    monkeypatch.setattr(compiled_parts, "why_not_compiled", lambda device: "")
    monkeypatch.setattr(compiled_parts, "compiled", Parts)
    assert chosen_parts(Compile.on, CPU) is not EAGER
    assert cache_folder(CPU) == tmp_path / "opensora-launch" / "compiled" / f"torch-{torch.__version__}"
    assert os.environ[CACHE] == str(cache_folder(CPU))
