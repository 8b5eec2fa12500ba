"""Runs that never ran, for the verbs that read them."""

from pathlib import Path
from typing import Any

from opensora_launch.report.build import build_report
from tests.report.synthetic import a_plan, plain_simulation, write_run


def made_run(folder: Path, name: str, world: int, scale: float = 1.0, **changes: Any) -> Path:
    """A run on so many ranks that has its report; `scale` stretches its compute."""
    events = plain_simulation(world, scale=scale).events()
    run = write_run(folder / name, a_plan(world, **changes), [events], done=["0000_0"])
    build_report(run)
    return run
