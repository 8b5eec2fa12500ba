"""Dockerfile, compose.yaml and docs/container.md agree. scripts/check_files runs hadolint and Compose's own check."""

import re
import subprocess
from pathlib import Path

import pytest
import yaml

from opensora_launch.doctor.build_checks import LEAST_DRIVER

ROOT = Path(__file__).parent.parent
DOCKERFILE = (ROOT / "Dockerfile").read_text()
PAGE = (ROOT / "docs/container.md").read_text()
SERVICE = yaml.safe_load((ROOT / "compose.yaml").read_text())["services"]["opensora"]
ARGS = {name: value.strip('"') for name, value in re.findall(r"^ARG (\w+)=(\S*)$", DOCKERFILE, re.MULTILINE)}
OURS = {"UID": "APP_UID", "GID": "APP_GID"}  # bash keeps UID to itself, and read-only


def test_compose_sets_every_argument_to_the_dockerfiles_default() -> None:
    expected = {name: f"${{{OURS.get(name, name)}:-{value}}}" for name, value in ARGS.items()}
    assert SERVICE["build"]["args"] == expected
    assert SERVICE["user"] == "${APP_UID:-1000}:${APP_GID:-1000}"


def test_the_page_names_every_argument() -> None:
    assert [name for name in ARGS if f"`{name}" not in PAGE and OURS.get(name, name) not in PAGE] == []


def test_the_page_has_the_drivers_that_doctor_asks_for() -> None:
    rows = re.findall(r"^\| `(\d+)\.[\d.]+`.*?\| (\d+) or newer \|", PAGE, re.MULTILINE)
    assert {int(cuda): int(driver) for cuda, driver in rows} == {cuda: LEAST_DRIVER[cuda][0] for cuda in (12, 13)}
    listed = re.findall(r"^#     (\d+)\.[\d.]+ .*>= (\d+)", DOCKERFILE, re.MULTILINE)
    assert sorted(listed) == sorted(rows)


def test_nothing_that_doctor_warns_of_is_set() -> None:
    """Public guides put such variables into their images."""
    set_here = " ".join(re.findall(r"^ENV .*$", DOCKERFILE, re.MULTILINE))
    assert not re.search(r"NCCL|CUDA_LAUNCH|ALLOC_CONF|OMP_NUM|MKL_NUM|NO_CUDA", set_here)
    assert "environment" not in SERVICE
    assert "env_file" not in SERVICE


def sed(before: str, text: str, **env: str) -> str:
    """What the sed script that follows `before` in the Dockerfile makes of a text."""
    quote, script = re.search(re.escape(before) + r"\s*(['\"])(.*?)\1", DOCKERFILE, re.DOTALL).groups()  # type: ignore[union-attr]
    command = f"sed -E {quote}{script}{quote}"
    return subprocess.run(
        ["bash", "-c", command], input=text, env=env, capture_output=True, text=True, check=True
    ).stdout


@pytest.mark.parametrize(
    ("gpus", "made"),
    [("8.0;9.0", "80;90"), ("8.6", "80"), ("8.9 10.0+PTX 12.0", "80;100;120"), ("9.0a", "90")],
)
def test_flash_attn_gets_one_build_for_each_generation(gpus: str, made: str) -> None:
    assert sed("| sed -E", gpus) == made


@pytest.mark.parametrize("mirror", ["http://mirror.example/ubuntu", "http://mirror.example/ubuntu/"])
def test_a_mirror_replaces_all_of_ubuntus_servers(mirror: str) -> None:
    sources = (
        "http://archive.ubuntu.com/ubuntu/\nhttp://security.ubuntu.com/ubuntu\nhttp://ports.ubuntu.com/ubuntu-ports/\n"
    )
    assert sed("sed -Ei", sources, APT_MIRROR=mirror) == "http://mirror.example/ubuntu/\n" * 3
