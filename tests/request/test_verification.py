"""`verify`: what its ranks are told to compare, and with which kernels."""

import pytest

from opensora_launch.cli.verbs import VERBS
from opensora_launch.errors import UserError
from opensora_launch.request.flags import parse
from opensora_launch.request.verification import VerifyRequest, prepare_verify
from opensora_launch.schema.kernel_kinds import Compile


def prepared(*words: str) -> VerifyRequest:
    return prepare_verify(parse("verify", VERBS["verify"].flags, ["model=tiny", *words]))


def test_cases_are_compiled_only_when_asked() -> None:
    """Whether it pays is a question for a plan, and cases have none."""
    assert prepared("topology=cpu1").spec.compile is Compile.off
    assert prepared("topology=cpu1", "compile=on").spec.compile is Compile.on


@pytest.mark.parametrize("words", [["layout.tp=2"], ["engine=colossalai"]])
def test_what_cannot_be_compiled_is_refused_before_any_rank_starts(words: list[str]) -> None:
    with pytest.raises(UserError) as refused:
        prepared("topology=cpu2", "compile=on", *words)
    assert any(line.startswith("compile=on: ") for line in refused.value.problems)
