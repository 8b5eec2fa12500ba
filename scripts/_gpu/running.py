"""Does it run? The real `generate` of the full-size model with random weights, on one GPU."""

import json
import os
import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path
from typing import Any

from _bench import ROOT

from _gpu.notes import Notes
from _gpu.nvml_facts import used_bytes
from _gpu.setting import LARGE, SMALL, Setting

STEPS = {SMALL: 4, LARGE: 2}
LAUNCHERS = {SMALL: "torchrun", LARGE: "inline"}
PROMPT = "raining, sea"
REHEARSED = [
    "model=tiny", "video=custom", "video.height_px=32", "video.width_px=32", "video.num_frames=5",
    "launcher.threads_per_rank=1",
]  # fmt: skip
SHOWN = 3  # last lines of a command that failed


def run(setting: Setting, notes: Notes) -> None:
    """Make one short video, and then a large one."""
    for video in (SMALL, LARGE):
        notes.point(video, partial(_generate, setting, video))


def program(setting: Setting) -> list[str]:
    """Return what makes a run: `opensora-launch generate`; or, without its launcher, which a double has no GPU for."""
    if setting.through:
        return [*setting.through, "-m", "opensora_launch.worker"]
    return ["-m", "opensora_launch.cli", "generate"]


def words_of(setting: Setting, runs: Path, video: str) -> list[str]:
    """Return the arguments of `generate`: what a user would type, for few steps."""
    sizes = REHEARSED if setting.tiny else ["model=open_sora_v2", "model.init=random", f"video={video}"]
    place = "topology=1gpu" if setting.on_gpu else "topology=cpu1"
    more = [place, f"launcher={LAUNCHERS[video]}", f"sampling.num_steps={STEPS[video]}", f"runs_dir={runs}"]
    return ["--prompt", PROMPT, *sizes, *more]


def _generate(setting: Setting, video: str) -> dict[str, Any]:
    """Run the command. It refuses numbers that are not finite, so a video means that there were none."""
    setting.free()
    used = used_bytes() if setting.on_gpu else None
    with tempfile.TemporaryDirectory() as folder:
        words = words_of(setting, Path(folder), video)
        path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
        argv = [sys.executable, *program(setting), *words]
        done = subprocess.run(argv, env=os.environ | {"PYTHONPATH": path}, capture_output=True, text=True)
        if done.returncode:
            last = " / ".join((done.stderr or done.stdout).strip().splitlines()[-SHOWN:])
            raise RuntimeError(f"generate ended with {done.returncode}: {last}")
        (place,) = Path(folder).iterdir()
        found = _result(place)
    held = found.pop("gpu_peak_bytes")
    own = None if held is None or used is None else held - used
    return {"command": " ".join(["generate", *words[:-1]]), **found, "process_peak_bytes": own}


def _result(place: Path) -> dict[str, Any]:
    """Return times and memory of a run, beside the planner's."""
    from opensora_launch.report.prediction import PredictedRun, predict_run
    from opensora_launch.report.run_files import read_recorded_run
    from opensora_launch.rundir import RunDir

    recorded = read_recorded_run(RunDir(place))
    report = json.loads((place / "report.json").read_text(encoding="utf-8"))
    attempt = report["attempts"][-1]
    ran = predict_run(recorded.config, recorded.plan)
    gpus = [gpu["memory_peak_bytes"] for gpu in attempt["gpus"] if gpu["memory_peak_bytes"] is not None]
    return {
        "videos": sorted(path.name for path in (place / "samples").glob("*.mp4")),
        "attention": recorded.plan.attention,
        "times": report["times"],
        "prediction": report["prediction"],
        "tensors_peak_bytes": attempt["ranks"][0]["peak_memory_bytes"],
        "predicted_peak_bytes": ran.option.memory.peak if isinstance(ran, PredictedRun) else None,
        "gpu_peak_bytes": max(gpus, default=None),
    }
