"""compile=auto: where compiling the blocks pays, what it is predicted to save, and where it is refused."""

from dataclasses import replace

import pytest

from opensora_launch.errors import UserError
from opensora_launch.plan.compile_choice import COMPILE_S
from opensora_launch.plan.make_plan import make_plan, predict
from opensora_launch.plan.plan import Machine, Plan
from opensora_launch.schema.cards import Card
from opensora_launch.schema.config import Engine, LayoutConfig, RunConfig, VideoConfig
from opensora_launch.schema.kernel_kinds import Compile
from tests.plan.test_choose import card, machine, videos

LARGE = RunConfig(video=VideoConfig("768px"), hardware=card("h100_sxm"))
SMALL = replace(LARGE, video=VideoConfig("256px"))


def planned(run: RunConfig, gpus: int, count: int = 1) -> Plan:
    return make_plan(run, machine(gpus), videos(count), "0")


@pytest.mark.parametrize(
    ("run", "gpus", "count", "wanted"),
    [
        (LARGE, 1, 1, Compile.auto),  # some 70 s of the steps
        (LARGE, 8, 1, Compile.off),  # a rank saves less than it takes
        (LARGE, 8, 8, Compile.auto),
        (SMALL, 1, 1, Compile.off),
        (replace(SMALL, compile=Compile.on), 1, 1, Compile.on),
        (replace(LARGE, compile=Compile.off), 1, 1, Compile.off),
    ],
)
def test_it_is_chosen_where_it_pays(run: RunConfig, gpus: int, count: int, wanted: Compile) -> None:
    assert planned(run, gpus, count).compile is wanted


def test_cpu_ranks_and_unknown_cards_compile_only_when_asked() -> None:
    cpu = Machine("cpu", 1, 1, 2)
    assert make_plan(LARGE, cpu, videos(50), "0").compile is Compile.off
    assert make_plan(replace(LARGE, compile=Compile.on), cpu, videos(), "0").compile is Compile.on
    unknown = replace(LARGE, hardware=Card(memory_gib=79.65))
    assert not unknown.hardware.known
    assert planned(unknown, 1, 50).compile is Compile.off


def test_the_prediction_knows_it() -> None:
    """The steps are shorter, nothing else changes, and compiling is told apart."""
    (work, (eager, *_)), (_, (compiled, *_)) = (
        predict(replace(LARGE, compile=way), machine(1), videos()) for way in (Compile.off, Compile.on)
    )
    assert not work.compiled
    assert (eager.phases.compile, compiled.phases.compile) == (0, COMPILE_S)
    assert compiled.phases.compute < 0.97 * eager.phases.compute
    assert (compiled.phases.vae, compiled.phases.load) == (eager.phases.vae, eager.phases.load)
    assert compiled.phases.total - compiled.phases.making == pytest.approx(
        eager.phases.total - eager.phases.making + COMPILE_S
    )


@pytest.mark.parametrize(
    ("run", "message"),
    [
        (replace(LARGE, engine=Engine.colossalai), "compile=on: engine=colossalai is not compiled"),
        (replace(LARGE, layout=LayoutConfig(tp=2)), "compile=on: weights divided by layout.tp are not compiled"),
    ],
)
def test_what_cannot_be_compiled_is_refused(run: RunConfig, message: str) -> None:
    with pytest.raises(UserError) as refused:
        planned(replace(run, compile=Compile.on), 2)
    assert any(line.startswith(message) for line in refused.value.problems)
    assert planned(run, 2).compile is Compile.off or run.engine is Engine.native
