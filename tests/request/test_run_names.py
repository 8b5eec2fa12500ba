"""The name of a run's folder: when it was asked for, and what its first prompt says."""

import re
from pathlib import Path

import pytest

from opensora_launch.plan.plan import Machine
from opensora_launch.request.attempt import prepare_attempt
from opensora_launch.request.write_run import SLUG_CHARS, slug


@pytest.mark.parametrize(
    ("text", "name"),
    [
        ("a red circle", "a-red-circle"),
        ("  A Red,   CIRCLE!! ", "a-red-circle"),
        ("a cat's eye", "a-cats-eye"),
        ("café in São Paulo", "cafe-in-sao-paulo"),
        ("붉은 원 circle", "circle"),
        ("붉은 원", ""),
        ("2026 !", ""),
        ("", ""),
        ("../../etc/passwd; rm -rf ~", "etc-passwd-rm-rf"),
        ("line\nbreak\x00", "line-break"),
        ("a very long prompt about waves that break on a beach at dusk", "a-very-long-prompt-about-waves-that"),
        ("x" * 99, "x" * SLUG_CHARS),
        ("x" * SLUG_CHARS + " y", "x" * SLUG_CHARS),
    ],
)
def test_words_of_a_prompt(text: str, name: str) -> None:
    assert slug(text) == name
    assert len(name) <= SLUG_CHARS


def test_a_run_is_named_by_its_first_prompt(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    def name_of(*prompts: str) -> str:
        words = [word for text in prompts for word in ("--prompt", text)]
        return prepare_attempt([*words, "model=tiny"], Machine("cpu", 1, 1, 1)).run.path.name

    assert re.fullmatch(r"\d{8}-\d{6}-a-red-circle", name_of("A red circle", "b"))
    assert re.fullmatch(r"\d{8}-\d{6}(-\d+)?", name_of("붉은 원"))
