"""What a run is: the videos to make, on which machine, and the Plan, which holds everything that a worker needs.

The plan is written to plan.json, the only file that tells workers what to do.
"""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import msgspec

from opensora_launch.plan.geometry import Geometry
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.placement import Placement
from opensora_launch.plan.rows import Guidance, row_counts
from opensora_launch.schema.autoencoder import VaeKind
from opensora_launch.schema.config import MEASURED_MODELS, Engine, ModelConfig, NumericsConfig, SamplingConfig, Storage
from opensora_launch.schema.kernel_kinds import APPROXIMATE, Compile
from opensora_launch.schema.plain import unknown_keys

SCHEMA = 1
NOT_MEASURED = " (loss not measured for this model)"


@dataclass(frozen=True)
class VideoRequest:
    """One video to make: one sample of one prompt, with its own settings."""

    name: str  # stem of its files: "0007_2" is prompt 7, sample 2; --name makes other ones
    prompt: str  # as the user wrote it
    text: str  # as the encoders get it: the prompt, or what it was refined to, with its suffixes
    negative: str
    refs: tuple[str, ...]
    cond_type: str
    seed: int
    guidance: Guidance
    refined: str | None = None  # what --refine-command made of the prompt
    image: bool = False  # its first frame is an image of the same name that the image stage makes


@dataclass(frozen=True)
class Machine:
    """The machine that the ranks run on, as the launcher found it."""

    device: str  # "cpu" or "cuda"
    nodes: int
    gpus_per_node: int
    cpus_per_node: int
    gpus: tuple[str, ...] = ()  # UUIDs; empty: all visible GPUs

    @property
    def ranks(self) -> int:
        return self.nodes * self.gpus_per_node


@dataclass(frozen=True)
class Plan:
    """A resolved request: what to make, on which ranks, in which layouts and with which settings."""

    schema: int
    version: str  # of opensora_launch
    machine: Machine
    threads_per_rank: int
    timeout_s: float
    precision: str
    numerics: NumericsConfig
    attention: str
    profile: bool
    checkpoint_every_steps: int  # denoising steps; 0: never
    model: ModelConfig
    geometry: Geometry
    placement: Placement
    smaller: Placement | None  # the placement to continue with, once, if memory runs out
    text_cache: str | None
    sampling: SamplingConfig
    layouts: tuple[tuple[int, Layout], ...]  # (number of rows in a step, layout of such steps), rows ascending from 1
    videos: tuple[VideoRequest, ...]
    engine: Engine = Engine.native
    overlap: bool = False  # Ulysses exchanges while the blocks compute
    compile: Compile = Compile.off  # auto: it pays, so all ranks compile if all of them can
    preview_every_steps: int = 0  # denoising steps; 0: no previews
    images: "Plan | None" = None  # of the image stage, if first frames are still to be made
    first_frame_px: tuple[int, int] | None = None  # (height, width) to which an image is rescaled, before it is read

    def layout(self, rows: int) -> Layout:
        return dict(self.layouts)[rows]

    @property
    def dp(self) -> int:
        return self.layouts[0][1].dp

    @property
    def approximate(self) -> tuple[str, ...]:
        """The settings that change the video by more than rounding. Every summary of the run names them."""
        vae, unknown = self.model.vae, _unknown_loss(self.model)
        settings = {
            f"placement.storage=fp8{unknown}": self.placement.storage is Storage.fp8,
            f"numerics.fp8_products=true{unknown}": self.numerics.fp8_products,
            f"attention={self.attention}{NOT_MEASURED}": self.attention in APPROXIMATE,
            "numerics.tf32=true": self.numerics.tf32 and self.precision == "fp32",
            "model.vae.tile_frames": vae.kind is VaeKind.causal and vae.tile_frames is not None,
            "model.vae.tile_px": vae.kind is VaeKind.image and vae.tile_px is not None,
        }
        steps = approximate_steps(self.sampling, self.model)
        return steps + tuple(name for name, is_on in settings.items() if is_on)

    @property
    def batches(self) -> tuple[tuple[VideoRequest, ...], ...]:
        return batches(self.videos, self.sampling.batch_size or 1)

    def with_less(self, videos: Sequence[VideoRequest], images: Sequence[VideoRequest] = ()) -> "Plan | None":
        """Return the plan to continue with for these videos and images after memory ran out; None if there is none."""
        made = self.images and (self.images.with_less(images) or replace(self.images, videos=tuple(images)))
        if self.smaller is None and (self.images is None or self.images.smaller is None):
            return None
        return replace(
            self,
            placement=self.smaller or self.placement,
            smaller=None,
            videos=tuple(videos),
            images=made if images else None,
        )

    @classmethod
    def from_dict(cls, data: Any) -> "Plan":
        """Rebuild a plan from the JSON of `dataclasses.asdict(plan)`. ValueError says what is wrong with it."""
        schema = data.get("schema") if isinstance(data, dict) else None
        if schema != SCHEMA:
            raise ValueError(f"its schema is {schema}, but this version of opensora-launch reads schema {SCHEMA}")
        plan = msgspec.convert(data, cls)
        if unknown := next(unknown_keys(data, asdict(plan)), None):
            raise ValueError(f"it has an unknown key {unknown!r}")
        return plan


def approximate_steps(sampling: SamplingConfig, model: ModelConfig) -> tuple[str, ...]:
    """Return the settings by which steps compute fewer rows, and whether what that costs is known for the model."""
    unknown = _unknown_loss(model)
    settings = {
        f"sampling.reuse_every={sampling.reuse_every}{unknown}": sampling.reuse_every > 1,
        f"sampling.guidance_until={sampling.guidance_until:g}{unknown}": sampling.guidance_until < 1,
    }
    return tuple(name for name, is_on in settings.items() if is_on)


def _unknown_loss(model: ModelConfig) -> str:
    return "" if model.name in MEASURED_MODELS else NOT_MEASURED


def batches(videos: Sequence[VideoRequest], size: int) -> tuple[tuple[VideoRequest, ...], ...]:
    """Group neighbouring videos with the same steps and guidance, at most `size` per group."""
    groups: list[list[VideoRequest]] = []
    for video in videos:
        if groups and len(groups[-1]) < size and groups[-1][0].guidance == video.guidance:
            groups[-1].append(video)
        else:
            groups.append([video])
    return tuple(tuple(g) for g in groups)


def rows_per_step(video: VideoRequest, latent_frames: int, prune: bool) -> tuple[int, ...]:
    """Return the number of rows of each step of one video, using only what the request shows about equal rows."""
    has_condition = video.cond_type != "t2v" and latent_frames > 1
    return row_counts(video.guidance, video.text == video.negative, has_condition, latent_frames, prune)
