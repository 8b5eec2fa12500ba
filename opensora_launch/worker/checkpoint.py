"""Store latents and step of a batch in one file, so that denoising can stop after any step and resume there.

Every rank of a group has the whole latents after a step, and the predictions that later steps reuse. So the first one
writes them, and any number of ranks can resume. Files: checkpoints/<batch>.safetensors in the run's folder, until the
videos of the batch are saved.
"""

import hashlib
import json
import logging
import os
import signal
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from types import FrameType

import torch
import torch.distributed as dist
from jaxtyping import Float
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from opensora_launch.parallel.collectives import broadcast
from opensora_launch.parallel.mesh import Axis
from opensora_launch.plan.plan import Plan, VideoRequest
from opensora_launch.rundir import AttemptDir, aside
from opensora_launch.sampling.denoise import Reused

# Settings that change how a video is made, and not the video.
FREE_SAMPLING = ("batch_size", "num_samples", "prune_rows")
FREE_MODEL = ("folder", "download", "mmdit_prefix", "vae_prefix", "trained_frames")

log = logging.getLogger("opensora_launch.worker")


class Preempted(Exception):
    """The ranks were asked to stop, and have stored their progress."""


@dataclass
class Checkpoints:
    """The checkpoints of a group of ranks. axis: the ranks that work on the same videos.

    `last` is what the last step left in memory: batch, fingerprint, steps done, latents, predictions to reuse.
    """

    folder: Path
    stop_file: Path  # once it exists, the group stores and stops after the current step
    every: int  # steps; 0 stores only when asked to stop
    axis: Axis
    last: tuple[str, str, int, Tensor, Reused] | None = None

    def load(self, name: str, fingerprint: str, noise: Float[Tensor, "V S C"]) -> tuple[int, Tensor, Reused]:
        """Return (first step to compute, its latents, what it and later steps reuse), the same on every rank.

        That is 0, the noise and no predictions if nothing is stored.
        """
        found = self._read(self._path(name), fingerprint, noise) if self.axis.index == 0 else None
        step = torch.tensor([found[0] if found else 0])
        step = broadcast(self.axis, step if self.axis.index == 0 else None, torch.device("cpu"))
        if not step.item():
            return 0, noise, ()
        log.info("%s resumes after step %d", name, step.item())
        latents, reused = found[1:] if found else (None, None)
        device = noise.device
        return int(step.item()), broadcast(self.axis, latents, device), broadcast(self.axis, reused, device).unbind()

    def after_step(
        self, name: str, fingerprint: str, done: int, latents: Float[Tensor, "V S C"], reused: Reused
    ) -> None:
        """Store the step if one is due. Raises Preempted on all ranks of the group if the group is to stop."""
        self.last = (name, fingerprint, done, latents, reused)
        stop = self.asked_to_stop()
        if stop or (self.every and done % self.every == 0):
            if self.axis.index == 0:
                self._write(*self.last)
            if stop:
                log.info("%s is stored after step %d", name, done)
                raise Preempted

    def store_last(self) -> None:
        """Store the last finished step, if any. Any rank can do this: all have the same latents."""
        if self.last:
            self._write(*self.last)
            log.info("%s is stored after step %d", self.last[0], self.last[2])

    def asked_to_stop(self) -> bool:
        """Whether the group's first rank sees the stop file, on all of its ranks: they must agree on the step."""
        asked = torch.tensor([self.axis.index == 0 and self.stop_file.exists()], dtype=torch.uint8)
        if self.axis.size > 1:
            with self.axis.exchange(1 if self.axis.index == 0 else 0):
                dist.broadcast(asked, self.axis.ranks[0], group=self.axis.group)
        return bool(asked.item())

    def drop(self, name: str) -> None:
        """Delete the checkpoint of a finished batch."""
        self.last = None
        if self.axis.index == 0:
            self._path(name).unlink(missing_ok=True)

    def _path(self, name: str) -> Path:
        return self.folder / f"{name}.safetensors"

    def _read(self, path: Path, fingerprint: str, noise: Tensor) -> tuple[int, Tensor, Tensor] | None:
        try:
            with safe_open(path, framework="pt", device=str(noise.device)) as file:
                facts, latents = file.metadata(), file.get_tensor("latents")
                reused = file.get_tensor("reused") if "reused" in file.keys() else noise[:0]  # noqa: SIM118 no mapping
        except FileNotFoundError:
            return None
        except (OSError, SafetensorError) as error:
            log.warning("%s cannot be read (%s): the batch starts from its noise", path, error)
            return None
        if facts.get("fingerprint") != fingerprint or latents.shape != noise.shape or latents.dtype != noise.dtype:
            log.warning("%s belongs to another request: the batch starts from its noise", path)
            return None
        return int(facts["step"]), latents, reused

    def _write(self, name: str, fingerprint: str, step: int, latents: Tensor, reused: Reused) -> None:
        """Write the file whole or not at all, and flush it to the disk: the node may be gone a moment later."""
        path = self._path(name)
        path.parent.mkdir(parents=True, exist_ok=True)
        facts = {"step": str(step), "fingerprint": fingerprint}
        latents = latents.detach().cpu().contiguous()
        kept = torch.stack([*reused]).cpu() if reused else latents[:0]
        with aside(path) as beside:
            save_file({"latents": latents, "reused": kept}, beside, metadata=facts)
            with beside.open("rb+") as file:
                os.fsync(file.fileno())


def fingerprint(plan: Plan, videos: Sequence[VideoRequest]) -> str:
    """Hash everything that decides the videos, but not ranks, layout and the places of files."""
    sampling = {k: v for k, v in asdict(plan.sampling).items() if k not in FREE_SAMPLING}
    model = {k: v for k, v in asdict(plan.model).items() if k not in FREE_MODEL}
    facts = [[asdict(v) for v in videos], asdict(plan.geometry), sampling, model, plan.precision, plan.approximate]
    return hashlib.sha256(json.dumps(facts, sort_keys=True).encode()).hexdigest()


def listen_for_stop(attempt: AttemptDir, *, in_batch_job: bool) -> None:
    """On SIGUSR1, and in a batch job on SIGTERM, ask every rank of the attempt to store and stop."""

    def ask(signum: int, frame: FrameType | None) -> None:
        attempt.stop.touch()

    signal.signal(signal.SIGUSR1, ask)
    if in_batch_job:
        signal.signal(signal.SIGTERM, ask)
