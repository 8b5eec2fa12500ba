"""The config of a run: the schema against which Hydra checks every YAML file and override.

The dataclasses are final once constructed (`settings`). The next step turns them into a `Plan`, and no code after
`plan` reads a config. Units are part of the names. `None` means that the launcher decides.
"""

from dataclasses import field
from enum import StrEnum

from opensora_launch.schema.autoencoder import VaeConfig
from opensora_launch.schema.cards import Card
from opensora_launch.schema.prices import EstimateConfig
from opensora_launch.schema.settings import settings
from opensora_launch.schema.slurm import SlurmConfig

MAX_COUNT = 10_000  # steps and samples, for a run and for one prompt: more is a typing error
MAX_SEED = 2**63 - 1


class Init(StrEnum):
    checkpoint = "checkpoint"
    random = "random"  # seeded random weights and text embeddings, for speed measurements and tests


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Link(StrEnum):
    auto = "auto"  # NVLink if it connects all cards of a node
    nvlink = "nvlink"
    pcie = "pcie"


class Precision(StrEnum):
    auto = "auto"  # bf16 on GPUs, fp32 on CPU
    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


class LauncherKind(StrEnum):
    inline = "inline"  # one rank in this process, for debuggers
    torchrun = "torchrun"
    slurm = "slurm"  # a batch job on a cluster
    srun = "srun"  # a job step in the allocation of this process


class Engine(StrEnum):
    """The library that parallelises the transformer and T5. Both give the same video."""

    native = "native"
    colossalai = "colossalai"  # as Open-Sora uses; install it with scripts/install_colossalai


class Shard(StrEnum):
    """The ranks among which the transformer's weights are divided. They are gathered block by block ahead of use."""

    none = "none"  # every rank holds all weights
    node = "node"  # among the ranks of a node that work on the same videos
    all = "all"  # among all ranks that work on the same videos


class Offload(StrEnum):
    none = "none"
    host = "host"  # blocks are kept in host memory and copied to the GPU ahead of use


class Storage(StrEnum):
    """The number format in which the blocks' weights are stored. They compute in the run's precision either way."""

    full = "full"
    fp8 = "fp8"  # approximate: float8_e4m3 with a power of two per row; halves memory and traffic


class Fit(StrEnum):
    auto = "auto"  # place the weights so that they fit; if memory runs out, continue once with a smaller placement
    strict = "strict"  # keep the configured placement; refuse what does not fit, and fail if memory runs out


class AttentionKind(StrEnum):
    """Kernels that compute softmax(q k^T) v; `auto` takes the fastest one that supports the GPU, dtype and shape."""

    auto = "auto"
    flash4 = "flash4"
    flash3 = "flash3"
    flash2 = "flash2"
    cudnn = "cudnn"
    sdpa_flash = "sdpa_flash"
    xformers = "xformers"
    cpu_flash = "cpu_flash"
    reference = "reference"


@settings
class MmditConfig:
    """The transformer, with Open-Sora's public names and Open-Sora 2.0's values as defaults."""

    in_channels: int = 64
    vec_in_dim: int = 768
    context_in_dim: int = 4096
    hidden_size: int = 3072
    mlp_ratio: float = 4.0
    num_heads: int = 24
    depth: int = 19
    depth_single_blocks: int = 38
    axes_dim: list[int] = field(default_factory=lambda: [16, 56, 56])
    theta: int = 10_000
    qkv_bias: bool = True
    guidance_embed: bool = False
    cond_embed: bool = True
    fused_qkv: bool = False
    use_liger_rope: bool = True
    patch_size: int = 2


@settings
class TextConfig:
    """Lengths to which the text encoders pad or cut a prompt, in tokens."""

    t5_max_length: int = 512
    clip_max_length: int = 77


@settings
class ModelConfig:
    """The networks and their files; paths are relative to `folder`."""

    name: str = "open_sora_v2"
    init: Init = Init.checkpoint
    init_seed: int = 0  # seed of random weights
    trained_frames: int = 129  # of its videos: video.num_frames, where the user sets no other
    folder: str = "ckpts"
    mmdit_file: str = "Open_Sora_v2.safetensors"
    mmdit_prefix: str = ""  # starts the name of each tensor in mmdit_file, as "module." in some checkpoints
    vae_file: str = "hunyuan_vae.safetensors"
    vae_prefix: str = ""
    t5_folder: str = "google/t5-v1_1-xxl"
    clip_folder: str = "openai/clip-vit-large-patch14"
    download: str = "hf download hpcai-tech/Open-Sora-v2 --local-dir {folder}"
    lora: list[str] = field(default_factory=list)  # PATH or PATH@STRENGTH of each LoRA; --lora adds to it
    mmdit: MmditConfig = field(default_factory=MmditConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    text: TextConfig = field(default_factory=TextConfig)


@settings
class VideoConfig:
    """The size of the videos, from the public size table; `resolution` null: `height_px` and `width_px` give it."""

    resolution: str | None = "256px"
    aspect_ratio: str = "16:9"
    height_px: int | None = None
    width_px: int | None = None
    num_frames: int = 129
    fps: int = 24


@settings
class TopologyConfig:
    """The ranks: one per GPU, or CPU processes on a machine without GPUs."""

    nodes: int = 1
    gpus_per_node: int | None = None  # null: all free GPUs, or 2 CPU ranks if there is no sign of a GPU
    device: Device = Device.auto
    gpus: list[str] = field(default_factory=list)  # of this machine, by number or UUID; empty: all free GPUs
    link: Link = Link.auto  # between the GPUs of a node
    link_gb_s: float | None = None  # measured, one way; null: the value of the catalogue
    node_link_gb_s: float = 25.0  # from a GPU to other nodes, one way; 25 is 200 Gbit/s
    disk_gb_s: float = 2.0  # at which a node reads the weights; predictions only


@settings
class LayoutConfig:
    """Degrees of the mesh axes; null: the planner chooses. Their product is the number of ranks."""

    dp: int | None = None  # groups of ranks; each group has its own videos
    cfg: int | None = None  # groups of ranks that share the guidance rows
    ring: int | None = None  # ranks pass keys and values around; any degree; tolerates slow links
    ulysses: int | None = None  # ranks share the heads; needs fast links
    tp: int | None = None  # ranks share the weights, by heads and feed-forward; needs the fastest links


@settings
class PlacementConfig:
    """Where the transformer's weights are kept; null: the planner chooses (`fit`). It does not change the video."""

    shard: Shard | None = None
    offload: Offload | None = None
    resident_blocks: int | None = None  # blocks of offloaded weights that stay on the GPU
    rows_at_once: int | None = None  # rows that a rank computes together; fewer rows need less memory; 0: all
    storage: Storage = Storage.full


@settings
class NumericsConfig:
    """How matrix products are computed on a GPU. These settings replace torch's defaults."""

    tf32: bool = False  # approximate: fp32 products use 10 bits of the mantissa
    reduced_sums: bool = True  # bf16 and fp16 products may add partial sums in that type, as the reference does


@settings
class SamplingConfig:
    """How videos are sampled; defaults are Open-Sora 2.0's."""

    num_steps: int = 50
    guidance: float = 7.5
    guidance_img: float = 3.0
    text_osci: bool = True
    image_osci: bool = True
    scale_temporal_osci: bool = True
    shift: bool = True
    flow_shift: float | None = None
    seed: int | None = 42  # null: drawn at launch and recorded; 0 is a valid seed
    num_samples: int = 1  # per prompt; sample k uses seed + k
    batch_size: int | None = None  # videos that a group of ranks denoises together; null: by memory and time
    cond_type: str | None = None  # null: t2v without references, i2v_head with one, i2v_loop with two
    motion_score: str | None = "4"  # appended to the prompt; null: not appended
    negative_prompt: str = ""
    prune_rows: bool = True  # false: compute all three rows in every step, as the reference does
    noise_device: str = "cpu"  # cuda: draw from the GPU's generator, as the reference does
    state_dtype: str = "fp32"  # bf16: round latents and timesteps as the reference does


@settings
class LauncherConfig:
    """How ranks are started and watched."""

    kind: LauncherKind = LauncherKind.torchrun
    timeout_s: float = 600.0  # a rank without progress for this long is reported and the run is stopped
    threads_per_rank: int | None = None  # null: cores of the machine divided by its ranks
    checkpoint_every_steps: int | None = None  # denoising steps; null: 5 in a batch job, else never; 0: never
    slurm: SlurmConfig = field(default_factory=SlurmConfig)


@settings
class EnvConfig:
    """The ranks' environment: `set` gives values for unset variables, `unset` lists variables to remove."""

    profile: str = "workstation"
    set: list[str] = field(
        default_factory=lambda: ["PYTORCH_CUDA_ALLOC_CONF=expandable_segments:True", "NCCL_DEBUG=WARN"]
    )
    unset: list[str] = field(
        default_factory=lambda: [
            "CUDA_LAUNCH_BLOCKING",
            "PYTORCH_NO_CUDA_MEMORY_CACHING",
            "CUDA_MEMORY_FRACTION",
            "NCCL_BLOCKING_WAIT",
            "TORCH_NCCL_BLOCKING_WAIT",
        ]
    )


@settings
class RunConfig:
    """The whole config of a run; each field is a group or a top-level key of Hydra's config."""

    model: ModelConfig = field(default_factory=ModelConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    topology: TopologyConfig = field(default_factory=TopologyConfig)
    hardware: Card = field(default_factory=Card)
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    fit: Fit = Fit.auto
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    estimate: EstimateConfig = field(default_factory=EstimateConfig)
    engine: Engine = Engine.native
    precision: Precision = Precision.auto
    numerics: NumericsConfig = field(default_factory=NumericsConfig)
    attention: AttentionKind = AttentionKind.auto
    preview_every_steps: int = 0  # denoising steps between previews, small images in the run's folder; 0: none
    profile: bool = False  # write one Chrome trace per rank; Perfetto opens it
    text_cache: str | None = "~/.cache/opensora-launch/text"  # prompt embeddings that later runs reuse; null: off
    runs_dir: str = "runs"
    dry_run: bool = False
    follow: bool = False  # launcher=slurm: show the job's progress, and exit with its exit code
