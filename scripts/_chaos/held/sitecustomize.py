"""Python runs this at its start in every process of a run that scripts/chaos harms: one rank is held at one place.

The rank writes the file CHAOS_HOLD.reached there and waits for CHAOS_HOLD.go, so that the harm comes at that place on
every machine. CHAOS_PLACE is PHASE,VIDEO,STEP,RANK; an empty VIDEO or STEP stands for any.
"""

import os
import sys
import threading
import time
from pathlib import Path
from typing import Any

HELD_S = 120.0  # at most
MODULE = "opensora_launch.telemetry.heartbeat"


def hold_there(phase: str, video: str, step: str, sign: str) -> None:
    """Watch the place of this process's heartbeat. The recorder sets `steps` last."""
    while (heartbeat := getattr(sys.modules.get(MODULE), "Heartbeat", None)) is None:
        time.sleep(0.001)

    def set_steps(beat: Any, steps: int | None) -> None:
        vars(beat)["steps"] = steps
        here = beat.phase == phase and video in ("", beat.video) and step in ("", str(beat.step))
        if not here or Path(f"{sign}.reached").exists():
            return
        Path(f"{sign}.reached").write_text(str(os.getpid()))
        end = time.monotonic() + HELD_S
        while not Path(f"{sign}.go").exists() and time.monotonic() < end:
            time.sleep(0.001)

    heartbeat.steps = property(lambda beat: vars(beat)["steps"], set_steps)


if os.environ.get("CHAOS_PLACE"):
    *place, held_rank = os.environ["CHAOS_PLACE"].split(",")
    if os.environ.get("SLURM_PROCID", os.environ.get("RANK", "0")) == held_rank:
        threading.Thread(target=hold_there, args=(*place, os.environ["CHAOS_HOLD"]), daemon=True).start()
