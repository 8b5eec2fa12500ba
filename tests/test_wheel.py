"""The wheel is complete: installed outside the checkout it holds the code, its data and all configs."""

import os
import subprocess
import sys
from pathlib import Path
from zipfile import ZipFile

import pytest

ROOT = Path(__file__).parent.parent
PACKAGE = "opensora_launch"


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> ZipFile:
    """Built without isolation, so without the network."""
    pytest.importorskip("hatchling")
    out = tmp_path_factory.mktemp("wheel")
    code = "import sys; from hatchling.build import build_wheel; build_wheel(sys.argv[1])"
    subprocess.run([sys.executable, "-c", code, str(out)], cwd=ROOT, check=True)
    (path,) = out.glob("*.whl")
    return ZipFile(path)


def test_holds_code_data_and_configs(wheel: ZipFile) -> None:
    code = {p for p in (ROOT / PACKAGE).rglob("*") if p.is_file() and "__pycache__" not in p.parts}
    configs = {p for p in (ROOT / "configs").rglob("*") if p.is_file()}
    assert code
    assert configs
    wanted = {str(p.relative_to(ROOT)) for p in code} | {f"{PACKAGE}/{p.relative_to(ROOT)}" for p in configs}
    assert sorted(wanted - set(wheel.namelist())) == []


def test_has_the_command_and_the_licence(wheel: ZipFile) -> None:
    (info,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    assert "opensora-launch = opensora_launch.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert "Apache License" in wheel.read(f"{info}/licenses/LICENSE").decode()


def test_plans_a_run_outside_the_checkout(wheel: ZipFile, tmp_path: Path) -> None:
    site, elsewhere = tmp_path / "site", tmp_path / "elsewhere"
    wheel.extractall(site)
    elsewhere.mkdir()
    code = (
        "import sys, opensora_launch\n"
        f"assert opensora_launch.__file__.startswith({str(site)!r}), opensora_launch.__file__\n"
        "from opensora_launch.cli import main\n"
        "sys.exit(main())\n"
    )
    argv = [sys.executable, "-c", code, "generate", "--prompt", "x", "model=tiny", "topology=cpu2", "dry_run=true"]
    env = os.environ | {"PYTHONPATH": str(site)}
    done = subprocess.run(argv, cwd=elsewhere, env=env, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "--nproc-per-node 2 -m opensora_launch.worker" in done.stdout
