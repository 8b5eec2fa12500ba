"""The folders of a run: the name of every file in them, and how a file is written so that readers never see a part.

docs/cli.md describes what each file holds.
"""

import os
import re
import socket
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from opensora_launch.errors import UserError


class _Entry:
    """A file or folder with a fixed name."""

    def __init__(self, name: str) -> None:
        self.name = name

    def __get__(self, folder: "_Folder", owner: type) -> Path:
        return folder.path / self.name


@dataclass(frozen=True)
class _Folder:
    path: Path

    def __str__(self) -> str:
        return str(self.path)

    def __fspath__(self) -> str:
        return str(self.path)


class RunDir(_Folder):
    """runs/<stamp>-<slug of the prompt>, or the folder after --output: a request, what it became, and the videos."""

    config = _Entry("config.yaml")
    overrides = _Entry("overrides.json")
    prompts = _Entry("prompts.jsonl")
    plan = _Entry("plan.json")
    samples = _Entry("samples")
    failed = _Entry("failed")
    checkpoints = _Entry("checkpoints")
    previews = _Entry("previews")
    claims = _Entry("claims")
    attempts_folder = _Entry("attempts")
    report_json = _Entry("report.json")
    report_markdown = _Entry("report.md")
    report_page = _Entry("report.html")
    metrics = _Entry("metrics.prom")
    ranks_csv = _Entry("ranks.csv")
    trace = _Entry("trace.json")

    @property
    def images(self) -> "ImagesDir":
        """The first frames that the image stage makes."""
        return ImagesDir(self.path / "images")

    def record(self, video: str) -> Path:
        """The record of a finished video. It is written last, so the file that a record names is complete."""
        return self.samples / f"{video}.json"

    def sheet(self, video: str) -> Path:
        """The contact sheet of a finished video."""
        return self.samples / f"{video}.sheet.png"

    def failure(self, video: str) -> Path:
        """Why a video could not be made, while the others were."""
        return self.failed / f"{video}.txt"

    def checkpoint(self, batch: str) -> Path:
        """Latents of a batch that is not finished."""
        return self.checkpoints / f"{batch}.safetensors"

    def preview(self, video: str, step: int) -> Path:
        """An image of what a video will look like, after so many steps."""
        return self.previews / video / f"step{step:04d}.png"

    def attempt(self, number: int | str) -> "AttemptDir":
        return AttemptDir(self.attempts_folder / str(number))

    def attempts(self) -> list["AttemptDir"]:
        """Every attempt, oldest first."""
        numbers = sorted(int(p.name) for p in self.attempts_folder.glob("*") if p.name.isdigit())
        return [self.attempt(number) for number in numbers]


class ImagesDir(RunDir):
    """images/ of a run: images as samples, with their records, claims and failures, arranged as in the run's folder."""

    attempts_folder = _Entry("../attempts")


class AttemptDir(_Folder):
    """attempts/<k> of a run: one start of the ranks."""

    plan = _Entry("plan.json")
    command = _Entry("command.txt")
    environment = _Entry("environment.json")
    launcher = _Entry("launcher.json")
    waited = _Entry("waited.json")  # since when a user waits for it
    batch_script = _Entry("job.sbatch")
    started = _Entry("started")  # a job works, or has worked, with this attempt
    requeued = _Entry("requeued")  # its job was requeued after it; holds the reason
    stop = _Entry("stop")  # asks the ranks to store where they are and to end
    error = _Entry("error.json")
    verify_spec = _Entry("verify.json")
    verify_lines = _Entry("verify.jsonl")
    logs = _Entry("logs")
    starter_log = _Entry("logs/torchrun.log")
    heartbeats = _Entry("heartbeat")
    telemetry = _Entry("telemetry")

    @property
    def run(self) -> RunDir:
        return RunDir(self.path.parent.parent)

    @property
    def number(self) -> int:
        return int(self.path.name)

    def make_folders(self) -> None:
        for folder in (self.logs, self.heartbeats, self.telemetry):
            folder.mkdir()

    def log(self, rank: int) -> Path:
        return self.logs / f"rank{rank}.log"

    def heartbeat(self, rank: int | str) -> Path:
        return self.heartbeats / f"rank{rank}.json"

    def events(self, rank: int) -> Path:
        return self.telemetry / f"rank{rank}.jsonl"

    def all_events(self) -> list[Path]:
        return sorted(self.telemetry.glob("rank*.jsonl"))

    def samples_of(self, host: str) -> Path:
        """What the sampler of a node writes."""
        return self.telemetry / f"node-{re.sub(r'[^A-Za-z0-9._-]', '_', host)}.jsonl"

    def all_samples(self) -> list[Path]:
        return sorted(self.telemetry.glob("node-*.jsonl"))

    def profiler_trace(self, rank: int) -> Path:
        return self.path / "trace" / f"rank{rank}.json"


class SweepDir(_Folder):
    """runs/bench-<stamp>: the runs of a scaling sweep, and its report."""

    state = _Entry("sweep.json")
    command = _Entry("command.txt")
    log = _Entry("bench.log")
    lock = _Entry("bench.lock")
    report_page = _Entry("report.html")

    def run(self, name: str) -> RunDir:
        return RunDir(self.path / name)


def make_folder(parent: Path, name: str) -> Path:
    """Make parent/name, or parent/name-2 and so on where it is taken."""
    try:
        parent.mkdir(parents=True, exist_ok=True)
        for number in range(1, 1000):
            folder = parent / (name if number == 1 else f"{name}-{number}")
            try:
                folder.mkdir()
                return folder
            except FileExistsError:
                continue
    except OSError as error:
        raise UserError(f"runs_dir={parent} cannot be written: {error.strerror}") from error
    raise UserError(f"{parent} holds a thousand runs of {name} already")


def output_problems(folder: Path) -> list[str]:
    """One line if a run or a sweep cannot have the folder after --output: it holds something, or is no folder."""
    try:
        if not any(folder.iterdir()):
            return []
        again = f"--resume {folder} makes what is missing there"
        return [f"--output {folder} is not empty; give another folder ({again})"]
    except FileNotFoundError:
        return []
    except OSError as error:
        return [f"--output {folder} cannot be used: {error.strerror}"]


def make_empty_folder(folder: Path) -> Path:
    """Make the folder after --output, unless it is there and empty."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UserError(f"--output {folder} cannot be made: {error.strerror}") from error
    return folder


@contextmanager
def named(path: Path) -> Iterator[None]:
    """Add `path` to an OSError that names no file, as that of a full disk, when the block writes it."""
    try:
        yield
    except OSError as error:
        if error.filename is not None or error.errno is None:
            raise
        raise OSError(error.errno, error.strerror, str(path)) from error


@contextmanager
def aside(path: Path) -> Iterator[Path]:
    """A path to write to, which becomes `path` when the block ends well: a reader sees all of the file or nothing."""
    beside = _beside(path)
    try:
        with named(path):
            yield beside
            beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)


def write_whole(path: Path, text: str) -> None:
    """Write a text file so that a reader sees all of it or nothing."""
    with aside(path) as beside:
        beside.write_text(text, encoding="utf-8")


def create_once(path: Path, text: str) -> bool:
    """Write a file that only one process may create; False if another process was first.

    The file appears whole: it is a hard link to a finished file. On a file system without links it is created
    exclusively and then written, so a reader may see it empty for a moment.
    """
    beside = _beside(path)
    try:
        with named(path):
            beside.write_text(text, encoding="utf-8")
        try:
            os.link(beside, path)
        except FileExistsError:
            return False
        except OSError:
            return _create_exclusively(path, text)
        return True
    finally:
        beside.unlink(missing_ok=True)


def _create_exclusively(path: Path, text: str) -> bool:
    try:
        with named(path), path.open("x", encoding="utf-8") as file:
            file.write(text)
    except FileExistsError:
        return False
    return True


def _beside(path: Path) -> Path:
    """A hidden name beside `path` that no other thread of any host uses. File systems allow 255 bytes."""
    ending = f".{socket.gethostname()}.{os.getpid()}.{threading.get_ident()}"
    name = path.name.encode()[: 254 - len(ending.encode())].decode(errors="ignore")
    return path.with_name(f".{name}{ending}")
