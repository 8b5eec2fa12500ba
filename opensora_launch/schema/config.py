"""What a run asks for: the schema that Hydra checks every YAML file and override against.

Plain dataclasses, not frozen: Hydra must be able to write overrides into them. They become a frozen
`Plan` one step later, and no code past `plan` reads a config. Units live in the names. `None` means
"the launcher decides".
"""

from dataclasses import dataclass, field
from enum import StrEnum

from opensora_launch.schema.cards import HardwareConfig as HardwareConfig
from opensora_launch.schema.prices import CardOrder as CardOrder
from opensora_launch.schema.prices import EstimateConfig as EstimateConfig
from opensora_launch.schema.slurm import SlurmConfig


class Init(StrEnum):
    checkpoint = "checkpoint"
    random = "random"  # seeded random weights and text embeddings: for speed measurements and tests


class Device(StrEnum):
    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


class Link(StrEnum):
    auto = "auto"  # NVLink where all cards of a node have it
    nvlink = "nvlink"
    pcie = "pcie"


class Precision(StrEnum):
    auto = "auto"  # bf16 on GPUs, fp32 on CPU
    bf16 = "bf16"
    fp16 = "fp16"
    fp32 = "fp32"


class LauncherKind(StrEnum):
    inline = "inline"  # one rank in this process: the debugger's way in
    torchrun = "torchrun"
    slurm = "slurm"  # a batch job on a cluster
    srun = "srun"  # a step of the allocation that this process is in


class Engine(StrEnum):
    """Whose parallelism runs the transformer and T5. Both give the same video."""

    native = "native"
    colossalai = "colossalai"  # Open-Sora's own: an extra, installed by scripts/install_colossalai


class Shard(StrEnum):
    """Over which ranks a transformer's weights are divided; they are gathered block by block ahead of use."""

    none = "none"  # every rank holds them whole
    node = "node"  # over the ranks of a node that work on the same videos
    all = "all"  # over all ranks that work on the same videos


class Offload(StrEnum):
    none = "none"
    host = "host"  # blocks wait in host memory and are copied to the GPU ahead of use


class Storage(StrEnum):
    """How the blocks' weights are held; they compute in the run's precision either way."""

    full = "full"
    fp8 = "fp8"  # approximate: matrices as float8_e4m3 with a power of two a row; half of the memory and of the traffic


class Fit(StrEnum):
    auto = "auto"  # the weights are placed so that they fit; a run that is out of memory goes on with less, once
    strict = "strict"  # placement is as it is said; what does not fit is refused, out of memory is a failure


class AttentionKind(StrEnum):
    """Kernels that compute softmax(q k^T) v; `auto` takes the fastest that the GPU, dtype and shape allow."""

    auto = "auto"
    flash4 = "flash4"
    flash3 = "flash3"
    flash2 = "flash2"
    cudnn = "cudnn"
    sdpa_flash = "sdpa_flash"
    xformers = "xformers"
    cpu_flash = "cpu_flash"
    reference = "reference"


@dataclass
class MmditConfig:
    """The public Open-Sora names; defaults are Open-Sora 2.0's."""

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


@dataclass
class VaeConfig:
    """The Hunyuan causal VAE. Tile sizes are in pixels; a video smaller than a tile is not tiled."""

    in_channels: int = 3
    out_channels: int = 3
    latent_channels: int = 16
    layers_per_block: int = 2
    norm_num_groups: int = 32
    block_out_channels: list[int] = field(default_factory=lambda: [128, 256, 512, 512])
    scale_factor: float = 0.476986
    shift_factor: float = 0.0
    tile_px: int | None = 256
    tile_frames: int | None = None  # approximate: cut in time too, for videos too long for a GPU; 64 as Open-Sora can
    tile_overlap: float = 0.25


@dataclass
class TextConfig:
    t5_max_length: int = 512
    clip_max_length: int = 77


@dataclass
class ModelConfig:
    """The networks and where their files are; paths are relative to `folder`."""

    name: str = "open_sora_v2"
    init: Init = Init.checkpoint
    init_seed: int = 0  # of random weights
    folder: str = "ckpts"
    mmdit_file: str = "Open_Sora_v2.safetensors"
    vae_file: str = "hunyuan_vae.safetensors"
    t5_folder: str = "google/t5-v1_1-xxl"
    clip_folder: str = "openai/clip-vit-large-patch14"
    download: str = "hf download hpcai-tech/Open-Sora-v2 --local-dir {folder}"
    mmdit: MmditConfig = field(default_factory=MmditConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    text: TextConfig = field(default_factory=TextConfig)


@dataclass
class VideoConfig:
    """`resolution` and `aspect_ratio` name a row of the public size table; `custom` gives the pixels."""

    resolution: str | None = "256px"
    aspect_ratio: str = "16:9"
    height_px: int | None = None
    width_px: int | None = None
    num_frames: int = 129
    fps: int = 24


@dataclass
class TopologyConfig:
    """The ranks: one a GPU, or one a process on a machine without GPUs."""

    nodes: int = 1
    gpus_per_node: int | None = None  # null: all visible GPUs, or 2 CPU ranks where there is none
    device: Device = Device.auto
    gpus: list[str] = field(default_factory=list)  # of this machine, by number or UUID; empty: those that are free
    link: Link = Link.auto  # between the GPUs of a node
    link_gb_s: float | None = None  # measured, one way; null: the catalogue's
    node_link_gb_s: float = 25.0  # of a GPU to other nodes, one way: 200 Gbit/s


@dataclass
class LayoutConfig:
    """Degrees of the mesh axes; null is chosen by rule. Their product is the number of ranks."""

    dp: int | None = None  # groups of ranks, each with its own videos
    cfg: int | None = None  # guidance rows side by side
    ring: int | None = None  # keys and values travel; any degree, slower links
    ulysses: int | None = None  # heads are split; wants fast links
    tp: int | None = None  # weights are split by heads and feed-forward; wants the fastest links


@dataclass
class PlacementConfig:
    """Where the transformer's weights live; null is chosen (`fit`). The video is the same wherever they are."""

    shard: Shard | None = None
    offload: Offload | None = None
    resident_blocks: int | None = None  # of offloaded weights: blocks that stay on the GPU
    rows_at_once: int | None = None  # rows of a step that a rank computes together: fewer activations; 0 is all
    storage: Storage = Storage.full


@dataclass
class NumericsConfig:
    """How products are computed on a GPU, said and not left to torch's defaults."""

    tf32: bool = False  # approximate: products of fp32 numbers with 10 bits of theirs
    reduced_sums: bool = True  # products of bf16 and fp16 may add up partial sums in that type, as the reference's do


@dataclass
class SamplingConfig:
    num_steps: int = 50
    guidance: float = 7.5
    guidance_img: float = 3.0
    text_osci: bool = True
    image_osci: bool = True
    scale_temporal_osci: bool = True
    shift: bool = True
    flow_shift: float | None = None
    seed: int | None = 42  # null: drawn at launch and recorded; 0 is a seed
    num_samples: int = 1  # a prompt; sample k uses seed + k
    batch_size: int | None = None  # videos denoised at once by a group of ranks; null: as memory and time say
    cond_type: str | None = None  # null: t2v without a reference, i2v_head with one
    motion_score: str | None = "4"  # appended to the prompt; null leaves it out
    negative_prompt: str = ""
    prune_rows: bool = True  # false computes the reference's three rows on every step
    noise_device: str = "cpu"  # cuda draws the noise as the reference does, from the GPU's generator
    state_dtype: str = "fp32"  # bf16 rounds latents and timesteps as the reference does


@dataclass
class LauncherConfig:
    kind: LauncherKind = LauncherKind.torchrun
    timeout_s: float = 600.0  # a rank that makes no progress for this long is named and the run is stopped
    threads_per_rank: int | None = None  # null: the machine's cores divided by its ranks
    checkpoint_every_steps: int | None = None  # of denoising; null: 5 in a batch job, else never; 0 never
    slurm: SlurmConfig = field(default_factory=SlurmConfig)


@dataclass
class EnvConfig:
    """The ranks' environment: what is set where the launcher's own has nothing, and what is taken away from it."""

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


@dataclass
class RunConfig:
    model: ModelConfig = field(default_factory=ModelConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    topology: TopologyConfig = field(default_factory=TopologyConfig)
    hardware: HardwareConfig = field(default_factory=HardwareConfig)
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
    profile: bool = False  # write one Chrome trace a rank, which opens in Perfetto
    text_cache: str | None = "~/.cache/opensora-launch/text"  # embeddings of prompts, kept from run to run; null: off
    runs_dir: str = "runs"
    dry_run: bool = False
    follow: bool = False  # launcher=slurm: show how the job gets on, and end with its exit code
