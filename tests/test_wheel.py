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
