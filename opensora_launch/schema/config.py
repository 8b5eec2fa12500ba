"""The config of a run: the schema against which Hydra checks every YAML file and override.

The dataclasses are final once constructed (`settings`). The next step turns them into a `Plan`, and no code after
`plan` reads a config. Units are part of the names. `None` means that the launcher decides.
"""

from dataclasses import field
from enum import StrEnum

from opensora_launch.schema.autoencoder import VaeConfig
from opensora_launch.schema.cards import Card
from opensora_launch.schema.kernel_kinds import AttentionKind, Compile, Overlap
from opensora_launch.schema.prices import EstimateConfig
from opensora_launch.schema.ranks_env import EnvConfig
from opensora_launch.schema.settings import key, settings
from opensora_launch.schema.slurm import SlurmConfig

MAX_COUNT = 10_000  # steps and samples, for a run and for one prompt: more is a typing error
MAX_SEED = 2**63 - 1
Init = StrEnum("Init", ["checkpoint", "random"])
Device = StrEnum("Device", ["auto", "cpu", "cuda"])
Link = StrEnum("Link", ["auto", "nvlink", "pcie"])
Precision = StrEnum("Precision", ["auto", "bf16", "fp16", "fp32"])
Offload = StrEnum("Offload", ["none", "host"])


class LauncherKind(StrEnum):
    inline = "inline"  # one rank in this process, for debuggers
    torchrun = "torchrun"
    slurm = "slurm"  # a batch job on a cluster
    srun = "srun"  # a job step in the allocation of this process


class Engine(StrEnum):
    native = "native"
    colossalai = "colossalai"  # as Open-Sora uses; install it with scripts/install_colossalai


class Shard(StrEnum):
    """The ranks among which the transformer's weights are divided. They are gathered block by block ahead of use."""

    none = "none"
    node = "node"
    all = "all"


class Storage(StrEnum):
    """The number format in which the blocks' weights are stored. They compute in the run's precision either way."""

    full = "full"
    fp8 = "fp8"  # approximate: float8_e4m3 with a power of two per row; halves memory and traffic


MEASURED_MODELS = ("demo",)  # models whose loss by the presets of `quality` was measured (docs/quality.md)


class Quality(StrEnum):
    """Presets of approximate settings, by their measured loss (docs/quality.md)."""

    exact = "exact"
    balanced = "balanced"
    fast = "fast"


class Fit(StrEnum):
    auto = "auto"  # if memory runs out, continue once with a smaller placement
    strict = "strict"  # if memory runs out, fail


@settings
class MmditConfig:
    """The transformer, with Open-Sora's public names and Open-Sora 2.0's values as defaults."""

    in_channels: int = key(64, "channels of a token: latent channels x patch_size squared")
    vec_in_dim: int = key(768, "size of CLIP's vector of the prompt")
    context_in_dim: int = key(4096, "size of T5's vector of a token")
    hidden_size: int = key(3072, "size of a token inside the blocks")
    mlp_ratio: float = key(4.0, "size of the feed-forward layers divided by hidden_size")
    num_heads: int = key(24, "attention heads")
    depth: int = key(19, "blocks with two streams, text and video")
    depth_single_blocks: int = key(38, "blocks with one stream")
    axes_dim: list[int] = key([16, 56, 56], "rotary dims of time, height and width; their sum is the size of a head")
    theta: int = key(10_000, "base of the rotary frequencies")
    qkv_bias: bool = key(True, "q, k and v have a bias")
    guidance_embed: bool = key(False, "the guidance is an input, as in distilled checkpoints")
    cond_embed: bool = key(True, "images and videos to start from are an input")
    fused_qkv: bool = key(False, "the checkpoint stores q, k and v as one matrix")
    use_liger_rope: bool = key(
        True, "rotary pairs are channels d and d + half a head; false: 2k and 2k + 1, as in Flux"
    )
    patch_size: int = key(2, "side of the square of latent pixels that makes a token")


@settings
class TextConfig:
    """Lengths to which the text encoders pad or cut a prompt, in tokens."""

    t5_max_length: int = key(512, "tokens of a prompt that T5 reads")
    clip_max_length: int = key(77, "tokens of a prompt that CLIP reads")


@settings
class ModelConfig:
    """The networks and their files; paths are relative to `folder`."""

    name: str = key("open_sora_v2", "name of the model, in reports")
    init: Init = key(Init.checkpoint, "of the weights; random: seeded, with random text embeddings, for measurements")
    init_seed: int = key(0, "seed of random weights")
    trained_frames: int = key(129, "of its videos: video.num_frames, where the user sets no other")
    folder: str = key("ckpts", "folder of the weight files")
    mmdit_file: str = key("Open_Sora_v2.safetensors", "weights of the transformer")
    mmdit_prefix: str = key("", "starts the name of each tensor in mmdit_file, as module. in some checkpoints")
    vae_file: str = key("hunyuan_vae.safetensors", "weights of the VAE")
    vae_prefix: str = key("", "starts the name of each tensor in vae_file")
    t5_folder: str = key("google/t5-v1_1-xxl", "folder of the T5 encoder")
    clip_folder: str = key("openai/clip-vit-large-patch14", "folder of the CLIP encoder")
    download: str = key("hf download hpcai-tech/Open-Sora-v2 --local-dir {folder}", "shown where files are missing")
    lora: list[str] = key([], "LoRAs for the transformer, PATH or PATH@STRENGTH; --lora adds to them")
    mmdit: MmditConfig = field(default_factory=MmditConfig)
    vae: VaeConfig = field(default_factory=VaeConfig)
    text: TextConfig = field(default_factory=TextConfig)


@settings
class ImageConfig:
    """A text-to-image model that makes the first frame of each video which is given none.

    It reads the text embeddings of the video model.
    """

    model: ModelConfig | None = key(None, "the networks and their files, as in model; null: no first frames are made")
    resolution: str | None = key(None, "area of the images, as 768px, with the video's shape; null: the video's size")
    num_steps: int | None = key(None, "denoising steps of an image; null: sampling.num_steps")
    guidance: float = key(4.0, "an input of a distilled model; of another, as sampling.guidance; 1: no guidance")
    shift: bool = key(True, "more of the steps work at high noise in larger images")
    flow_shift: float | None = key(None, "factor of that; null: by the size of the image")


@settings
class VideoConfig:
    """The size of the videos: from the public size table, or your own width and height."""

    resolution: str | None = key("256px", "row of the size table; null: height_px and width_px give the size")
    aspect_ratio: str = key("16:9", "width to height, with a resolution")
    height_px: int | None = key(None, "a multiple of 16, without a resolution")
    width_px: int | None = key(None, "a multiple of 16, without a resolution")
    num_frames: int = key(129, "1 plus a multiple of 4; 1 is an image")
    fps: int = key(24, "frames per second of the file")


@settings
class TopologyConfig:
    """The ranks: one per GPU, or CPU processes on a machine without GPUs."""

    nodes: int = key(1, "number of machines")
    gpus_per_node: int | None = key(
        None, "ranks per machine; null: all free GPUs, or 2 CPU ranks if there is no sign of a GPU"
    )
    device: Device = key(Device.auto, "what the ranks compute on")
    gpus: list[str] = key([], "GPUs of this machine, by number or UUID; empty: all free GPUs")
    link: Link = key(Link.auto, "between the GPUs of a node; auto: NVLink if it connects all cards of a node")
    link_gb_s: float | None = key(None, "measured bandwidth, one way; null: the value of the catalogue")
    node_link_gb_s: float = key(25.0, "from a GPU to other nodes, one way; 25 is 200 Gbit/s")
    disk_gb_s: float = key(2.0, "at which a node reads the weights; predictions only")


@settings
class LayoutConfig:
    """Degrees of the mesh axes; null: the planner chooses. Their product is the number of ranks."""

    dp: int | None = key(None, "groups of ranks; each group has its own videos")
    cfg: int | None = key(None, "groups of ranks that share the guidance rows")
    ring: int | None = key(None, "ranks pass keys and values around; any degree, tolerates slow links")
    ulysses: int | None = key(None, "ranks share the heads; needs fast links")
    tp: int | None = key(None, "ranks share the weights, by heads and feed-forward; needs the fastest links")


@settings
class PlacementConfig:
    """Where the transformer's weights are kept; null: the planner chooses (`fit`). It does not change the video."""

    shard: Shard | None = key(
        None, "ranks among which weights are divided, of those that work on the same videos: none, of a node, or all"
    )
    offload: Offload | None = key(None, "host: blocks are kept in host memory and copied to the GPU ahead of use")
    resident_blocks: int | None = key(None, "blocks of offloaded weights that stay on the GPU")
    rows_at_once: int | None = key(None, "rows that a rank computes together; fewer rows need less memory; 0: all")
    storage: Storage = key(Storage.full, "fp8: approximate; blocks are stored in 8 bits, with half the memory")


@settings
class NumericsConfig:
    """How matrix products are computed on a GPU. These settings replace torch's defaults."""

    tf32: bool = key(False, "approximate: fp32 products use 10 bits of the mantissa")
    fp8_products: bool = key(
        False, "approximate: the large products of the blocks round tokens and weights to 8 bits; on CPUs emulated"
    )
    reduced_sums: bool = key(True, "bf16 and fp16 products may add partial sums in that type, as the reference does")


@settings
class SamplingConfig:
    """How videos are sampled; defaults are Open-Sora 2.0's."""

    num_steps: int = key(50, "denoising steps")
    guidance: float = key(7.5, "weight of the text against the negative prompt; 1: no guidance")
    guidance_img: float = key(3.0, "weight of the image or video to start from; 1: no guidance")
    text_osci: bool = key(True, "the weight of the text is 1 in every second step from step 10 on")
    image_osci: bool = key(True, "the weight of the image is 1 in every second step from step 10 on")
    scale_temporal_osci: bool = key(True, "the weight of the image grows from frame to frame")
    shift: bool = key(True, "more of the steps work at high noise in larger videos")
    flow_shift: float | None = key(None, "factor of that; null: by the size of the video")
    seed: int | None = key(42, "of the noise; null: drawn at launch and recorded; 0 is a valid seed")
    num_samples: int = key(1, "videos per prompt; sample k uses seed + k")
    batch_size: int | None = key(None, "videos that a group of ranks denoises together; null: by memory and time")
    cond_type: str | None = key(
        None, "what references are; null: t2v without any, i2v_head with one, i2v_loop with two"
    )
    motion_score: str | None = key("4", "appended to the prompt; null: not appended")
    negative_prompt: str = key("", "what videos must not show; the flag --negative-prompt sets it")
    prune_rows: bool = key(
        True, "compute only rows with a weight; false: all three in every step, as the reference does"
    )
    guidance_until: float = key(1.0, "approximate below 1: share of the steps with guidance; the others have one row")
    reuse_every: int = key(1, "approximate above 1: steps for which a row's prediction serves")
    reuse_from: int = key(4, "first of the steps that may reuse a prediction; the first ones decide most")
    noise_device: str = key("cpu", "where noise is drawn; cuda: from the GPU's generator, as the reference does")
    state_dtype: str = key("fp32", "of latents and timesteps; bf16: rounded, as the reference does")


@settings
class LauncherConfig:
    """How ranks are started and watched."""

    kind: LauncherKind = key(
        LauncherKind.torchrun, "inline: one rank in this process; slurm: a batch job; srun: a step of the allocation"
    )
    timeout_s: float = key(600.0, "a rank without progress for this long is reported and the run is stopped")
    threads_per_rank: int | None = key(None, "CPU threads; null: cores of the machine divided by its ranks")
    checkpoint_every_steps: int | None = key(
        None, "between two checkpoints; null: 5 in a batch job, else never; 0: never"
    )
    slurm: SlurmConfig = field(default_factory=SlurmConfig)


@settings
class RunConfig:
    """The whole config of a run; each field is a group or a top-level key of Hydra's config."""

    model: ModelConfig = field(default_factory=ModelConfig)
    video: VideoConfig = field(default_factory=VideoConfig)
    image: ImageConfig = field(default_factory=ImageConfig)
    topology: TopologyConfig = field(default_factory=TopologyConfig)
    hardware: Card = field(default_factory=Card)
    layout: LayoutConfig = field(default_factory=LayoutConfig)
    placement: PlacementConfig = field(default_factory=PlacementConfig)
    fit: Fit = key(
        Fit.auto, "auto: place the weights so that they fit; strict: as configured, refuse what does not fit"
    )
    sampling: SamplingConfig = field(default_factory=SamplingConfig)
    launcher: LauncherConfig = field(default_factory=LauncherConfig)
    env: EnvConfig = field(default_factory=EnvConfig)
    estimate: EstimateConfig = field(default_factory=EstimateConfig)
    engine: Engine = key(Engine.native, "library that parallelises the transformer and T5; both give the same video")
    quality: Quality = key(Quality.exact, "name of the preset; give quality=balanced or fast for a model of its table")
    precision: Precision = key(Precision.auto, "of the networks; auto: bf16 on GPUs, fp32 on a CPU")
    numerics: NumericsConfig = field(default_factory=NumericsConfig)
    attention: AttentionKind = key(
        AttentionKind.auto,
        "kernel; auto: the fastest exact one for GPU, type and shape; sage2, flash3_fp8: approximate",
    )
    compile: Compile = key(Compile.auto, "make the kernels of the blocks by torch.compile; auto: on GPUs where it pays")
    overlap: Overlap = key(Overlap.auto, "for debugging: off, if nothing may be exchanged while blocks compute")
    preview_every_steps: int = key(0, "denoising steps between previews, small images in the run's folder; 0: none")
    profile: bool = key(False, "write one Chrome trace per rank; Perfetto opens it")
    text_cache: str | None = key(
        "~/.cache/opensora-launch/text", "folder of prompt embeddings that later runs reuse; null: off"
    )
    runs_dir: str = key("runs", "folder that gets a folder for each run")
    dry_run: bool = key(False, "print the plan and the command, start nothing")
    follow: bool = key(False, "launcher=slurm: show the job's progress, and exit with its exit code")
