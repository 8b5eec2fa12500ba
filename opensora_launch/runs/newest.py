"""The runs of a folder, and the newest of them, which a command line calls `latest`."""

from functools import partial
from pathlib import Path

from opensora_launch.errors import UserError
from opensora_launch.rundir import RunDir, SweepDir
from opensora_launch.schema.config import RunConfig

LATEST = "latest"
_ANY = Path("*")


def runs_in(folder: Path) -> list[RunDir]:
    """All runs of a folder and of its sweeps, by name; for the folder of a run, that run."""
    if RunDir(folder).plan.exists():
        return [RunDir(folder)]
    files = [file for depth in (_ANY, _ANY / "*") for file in folder.glob(str(RunDir(depth).plan))]
    return sorted((RunDir(file.parent) for file in files), key=lambda run: run.path)


def _named(text: str, *, runs: bool, sweeps: bool) -> Path:
    """What a command line names: its folder, or the newest one for `latest` and FOLDER/latest.

    Raises UserError if there is none. Runs and sweeps are as old as the file that begins them.
    """
    path = Path(text)
    if path.name != LATEST or path.exists():
        return path
    folder = path.parent if path != Path(LATEST) else Path(RunConfig().runs_dir)
    found = runs_in(folder) if runs else []
    begun = [run.plan for run in found if not sweeps or folder in (run.path, run.path.parent)]
    begun += [SweepDir(file.parent).command for file in folder.glob(str(SweepDir(_ANY).state)) if sweeps]
    if not begun:
        what = "run" if runs else "sweep"
        raise UserError(f"{text}: there is no {what} in {folder}; name a {what}'s folder, or FOLDER/{LATEST}")
    return max(begun, key=lambda file: (file.stat().st_mtime if file.exists() else 0.0, file)).parent


named_run = partial(_named, runs=True, sweeps=False)
named_sweep = partial(_named, runs=False, sweeps=True)
named_report = partial(_named, runs=True, sweeps=True)  # a run, or a sweep, whose own runs do not count
