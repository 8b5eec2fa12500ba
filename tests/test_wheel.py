"""The wheel is complete: installed outside the checkout it holds the code, its data and all configs."""

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
    tracked = subprocess.run(
        ["git", "ls-files", PACKAGE, "configs"], cwd=ROOT, check=True, capture_output=True, text=True
    )
    files = [name for name in tracked.stdout.splitlines() if (ROOT / name).exists()]
    assert any(name.startswith("configs/") for name in files)
    wanted = {name if name.startswith(f"{PACKAGE}/") else f"{PACKAGE}/{name}" for name in files}
    assert sorted(wanted - set(wheel.namelist())) == []


def test_has_the_command_and_the_licence(wheel: ZipFile) -> None:
    (info,) = {name.split("/")[0] for name in wheel.namelist() if ".dist-info/" in name}
    assert "opensora-launch = opensora_launch.cli:main" in wheel.read(f"{info}/entry_points.txt").decode()
    assert "Apache License" in wheel.read(f"{info}/licenses/LICENSE").decode()
