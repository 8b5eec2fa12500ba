"""List names and shapes of the weights that a config requires. This is arithmetic, without torch, so that the launcher
can compare them with the header of a file before anything starts. Tests compare them with the modules.
"""

from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import pairwise

from opensora_launch.schema.autoencoder import VaeConfig, VaeKind
from opensora_launch.schema.config import MmditConfig, ModelConfig
from opensora_launch.schema.model_constants import DC_AE_CONV_STAGES, DC_AE_HEAD, DC_AE_WIDENED, TIME_CHANNELS
from opensora_launch.schema.tiles import tile_problems

TensorShape = tuple[int, ...]
Shapes = dict[str, TensorShape]

MAX_NAMES = 8  # names of each kind that an error lists
LEVELS = 4  # of the VAE: the first three halve space, the middle two halve time


def mismatches(want: Mapping[str, TensorShape], got: Mapping[str, TensorShape]) -> list[str]:
    """Return lines that list the names that are missing, unexpected, or of another shape."""
    problems = []
    for label, names in (("missing", sorted(set(want) - set(got))), ("unexpected", sorted(set(got) - set(want)))):
        if names:
            problems.append(f"{len(names)} {label}: {first_names(names)}")
    wrong = [n for n in want if n in got and want[n] != got[n]]
    problems += [f"{n} has shape {got[n]}, but the config requires {want[n]}" for n in wrong[:MAX_NAMES]]
    if len(wrong) > MAX_NAMES:
        problems.append(f"and {len(wrong) - MAX_NAMES} more of another shape")
    return problems


def first_names(names: Sequence[str]) -> str:
    """List the first names, and how many more there are."""
    more = f" and {len(names) - MAX_NAMES} more" if len(names) > MAX_NAMES else ""
    return ", ".join(names[:MAX_NAMES]) + more


def linear(name: str, inputs: int, outputs: int, bias: bool = True) -> Shapes:
    return {f"{name}.weight": (outputs, inputs)} | ({f"{name}.bias": (outputs,)} if bias else {})


def mmdit_shapes(cfg: MmditConfig) -> Shapes:
    """Return the weights of the diffusion transformer by public name (hpcaitech/Open-Sora, models/mmdit/model.py)."""
    width = cfg.hidden_size
    shapes = linear("img_in", cfg.in_channels, width) | linear("txt_in", cfg.context_in_dim, width)
    embedders = [("time_in", TIME_CHANNELS), ("vector_in", cfg.vec_in_dim)]
    if cfg.guidance_embed:
        embedders.append(("guidance_in", TIME_CHANNELS))
    for name, inputs in embedders:
        shapes |= linear(f"{name}.in_layer", inputs, width) | linear(f"{name}.out_layer", width, width)
    if cfg.cond_embed:
        shapes |= linear("cond_in", cfg.in_channels + cfg.patch_size**2, width)
    for i in range(cfg.depth):
        shapes |= double_block(f"double_blocks.{i}", cfg)
    for i in range(cfg.depth_single_blocks):
        shapes |= single_block(f"single_blocks.{i}", cfg)
    shapes |= linear("final_layer.linear", width, cfg.in_channels)
    return shapes | linear("final_layer.adaLN_modulation.1", width, 2 * width)


def double_block(block: str, cfg: MmditConfig) -> Shapes:
    width, wide = cfg.hidden_size, int(cfg.hidden_size * cfg.mlp_ratio)
    shapes: Shapes = {}
    for stream in (f"{block}.img", f"{block}.txt"):
        shapes |= linear(f"{stream}_mod.lin", width, 6 * width)
        if cfg.fused_qkv:
            shapes |= linear(f"{stream}_attn.qkv", width, 3 * width, cfg.qkv_bias)
        else:
            for part in ("q_proj", "k_proj", "v_proj"):
                shapes |= linear(f"{stream}_attn.{part}", width, width, cfg.qkv_bias)
        shapes |= head_norms(f"{stream}_attn.norm", cfg) | linear(f"{stream}_attn.proj", width, width)
        shapes |= linear(f"{stream}_mlp.0", width, wide) | linear(f"{stream}_mlp.2", wide, width)
    return shapes


def single_block(block: str, cfg: MmditConfig) -> Shapes:
    width, wide = cfg.hidden_size, int(cfg.hidden_size * cfg.mlp_ratio)
    if cfg.fused_qkv:
        shapes = linear(f"{block}.linear1", width, 3 * width + wide)
    else:
        shapes = linear(f"{block}.q_proj", width, width) | linear(f"{block}.k_proj", width, width)
        shapes |= linear(f"{block}.v_mlp", width, width + wide)
    shapes |= linear(f"{block}.linear2", width + wide, width) | head_norms(f"{block}.norm", cfg)
    return shapes | linear(f"{block}.modulation.lin", width, 3 * width)


def head_norms(name: str, cfg: MmditConfig) -> Shapes:
    size = (cfg.hidden_size // cfg.num_heads,)
    return {f"{name}.query_norm.scale": size, f"{name}.key_norm.scale": size}


def conv(name: str, inputs: int, outputs: int, kernel: int = 3, dims: int = 3) -> Shapes:
    return {f"{name}.weight": (outputs, inputs, *(kernel,) * dims), f"{name}.bias": (outputs,)}


image_conv = partial(conv, dims=2)


def group_norm(name: str, channels: int) -> Shapes:
    return {f"{name}.weight": (channels,), f"{name}.bias": (channels,)}


def vae_shapes(cfg: VaeConfig) -> Shapes:
    of_kind = {VaeKind.causal: causal_vae_shapes, VaeKind.dc_ae: dc_ae_shapes, VaeKind.image: image_vae_shapes}
    return of_kind[cfg.kind](cfg)


def causal_vae_shapes(cfg: VaeConfig) -> Shapes:
    """Return the weights of the causal VAE by public name (hpcaitech/Open-Sora, models/hunyuan_vae)."""
    widths, latent = cfg.block_out_channels, cfg.latent_channels
    shapes = conv("quant_conv", 2 * latent, 2 * latent, 1) | conv("post_quant_conv", latent, latent, 1)
    coder = [("encoder", "down_blocks", "downsamplers", widths, cfg.layers_per_block, cfg.in_channels, 2 * latent)]
    coder += [("decoder", "up_blocks", "upsamplers", widths[::-1], cfg.layers_per_block + 1, latent, cfg.out_channels)]
    for name, blocks, resampling, channels, layers, inputs, outputs in coder:
        shapes |= conv(f"{name}.conv_in.conv", inputs, channels[0])
        for i, (before, after) in enumerate(pairwise([channels[0], *channels])):
            for j in range(layers):
                shapes |= resnet(f"{name}.{blocks}.{i}.resnets.{j}", after if j else before, after)
            if i < LEVELS - 1:
                shapes |= conv(f"{name}.{blocks}.{i}.{resampling}.0.conv.conv", after, after)
        shapes |= mid_block(f"{name}.mid_block", widths[-1])
        shapes |= group_norm(f"{name}.conv_norm_out", channels[-1])
        shapes |= conv(f"{name}.conv_out.conv", channels[-1], outputs)
    return shapes


def mid_block(name: str, channels: int) -> Shapes:
    shapes = group_norm(f"{name}.attentions.0.group_norm", channels)
    for part in ("to_q", "to_k", "to_v", "to_out.0"):
        shapes |= linear(f"{name}.attentions.0.{part}", channels, channels)
    for i in range(2):
        shapes |= resnet(f"{name}.resnets.{i}", channels, channels)
    return shapes


def resnet(name: str, inputs: int, outputs: int) -> Shapes:
    shapes = group_norm(f"{name}.norm1", inputs) | conv(f"{name}.conv1.conv", inputs, outputs)
    shapes |= group_norm(f"{name}.norm2", outputs) | conv(f"{name}.conv2.conv", outputs, outputs)
    return shapes if inputs == outputs else shapes | conv(f"{name}.conv_shortcut.conv", inputs, outputs, 1)


def dc_ae_shapes(cfg: VaeConfig) -> Shapes:
    """Return the weights of the Video DC-AE by public name (hpcaitech/Open-Sora, models/dc_ae)."""
    widths, latent = cfg.dc_ae.widths, cfg.latent_channels
    shapes = conv("encoder.project_in.conv", cfg.in_channels, widths[0])
    shapes |= conv("encoder.project_out.main.op_list.0.conv", widths[-1], latent)
    shapes |= conv("decoder.project_in.main.conv", latent, widths[-1])
    shapes |= group_norm("decoder.project_out.op_list.0", widths[0])
    shapes |= conv("decoder.project_out.op_list.2.conv", widths[0], cfg.out_channels)
    for i, width in enumerate(widths):
        last = i == len(widths) - 1
        layers = cfg.dc_ae.encoder_depths[i]
        for j in range(layers):
            shapes |= dc_ae_block(f"encoder.stages.{i}.op_list.{j}", i, width)
        if not last:
            shapes |= conv(f"encoder.stages.{i}.op_list.{layers}.main.conv", width, widths[i + 1])
            shapes |= conv(f"decoder.stages.{i}.op_list.0.main.conv.conv", widths[i + 1], width)
        for j in range(cfg.dc_ae.decoder_depths[i]):
            shapes |= dc_ae_block(f"decoder.stages.{i}.op_list.{j + (not last)}", i, width)
    return shapes


def dc_ae_block(block: str, stage: int, width: int) -> Shapes:
    if stage < DC_AE_CONV_STAGES:
        return conv(f"{block}.main.conv1.conv", width, width) | normed_conv_shapes(
            f"{block}.main.conv2", width, width, 3
        )
    context, local, wide = f"{block}.context_module.main", f"{block}.local_module.main", 2 * DC_AE_WIDENED * width
    shapes: Shapes = {
        f"{context}.qkv.conv.weight": (3 * width, width, 1, 1, 1),
        f"{context}.aggreg.0.0.weight": (3 * width, 1, 5, 5, 5),
        f"{context}.aggreg.0.1.weight": (3 * width, DC_AE_HEAD, 1, 1, 1),
    }
    shapes |= normed_conv_shapes(f"{context}.proj", 2 * width, width, 1)
    shapes |= conv(f"{local}.inverted_conv.conv", width, wide, 1) | conv(f"{local}.depth_conv.conv", 1, wide)
    return shapes | normed_conv_shapes(f"{local}.point_conv", wide // 2, width, 1)


def normed_conv_shapes(name: str, inputs: int, outputs: int, kernel: int) -> Shapes:
    """A convolution without bias, and a norm."""
    weight = {f"{name}.conv.weight": (outputs, inputs, kernel, kernel, kernel)}
    return weight | group_norm(f"{name}.norm", outputs)


def image_vae_shapes(cfg: VaeConfig) -> Shapes:
    """Return the weights of Flux's autoencoder by public name (black-forest-labs/flux, modules/autoencoder.py)."""
    widths, latent = cfg.block_out_channels, cfg.latent_channels
    shapes: Shapes = {}
    for name, inputs, outputs in (("encoder", cfg.in_channels, 2 * latent), ("decoder", latent, cfg.out_channels)):
        down = name == "encoder"
        first, last = (widths[0], widths[-1]) if down else (widths[-1], widths[0])
        shapes |= image_conv(f"{name}.conv_in", inputs, first) | group_norm(f"{name}.norm_out", last)
        shapes |= image_conv(f"{name}.conv_out", last, outputs) | group_norm(f"{name}.mid.attn_1.norm", widths[-1])
        for part in ("q", "k", "v", "proj_out"):
            shapes |= image_conv(f"{name}.mid.attn_1.{part}", widths[-1], widths[-1], 1)
        for i in (1, 2):
            shapes |= image_resnet(f"{name}.mid.block_{i}", widths[-1], widths[-1])
        for i, width in enumerate(widths):  # both count from the pixels
            before = widths[max(i - 1, 0)] if down else widths[min(i + 1, LEVELS - 1)]
            block = f"{name}.{'down' if down else 'up'}.{i}"
            for j in range(cfg.layers_per_block + (not down)):
                shapes |= image_resnet(f"{block}.block.{j}", width if j else before, width)
            if i != (LEVELS - 1 if down else 0):
                shapes |= image_conv(f"{block}.{'downsample' if down else 'upsample'}.conv", width, width)
    return shapes


def image_resnet(name: str, inputs: int, outputs: int) -> Shapes:
    shapes = group_norm(f"{name}.norm1", inputs) | image_conv(f"{name}.conv1", inputs, outputs)
    shapes |= group_norm(f"{name}.norm2", outputs) | image_conv(f"{name}.conv2", outputs, outputs)
    return shapes if inputs == outputs else shapes | image_conv(f"{name}.nin_shortcut", inputs, outputs, 1)


def config_problems(model: ModelConfig) -> list[str]:
    """Return one line for each part of the config that is impossible, whatever the weights are."""
    return [*mmdit_problems(model.mmdit), *vae_problems(model.vae), *joint_problems(model)]


def mmdit_problems(cfg: MmditConfig) -> Iterator[str]:
    if len(cfg.axes_dim) != 3 or any(dim % 2 or dim < 2 for dim in cfg.axes_dim):
        yield f"model.mmdit.axes_dim={cfg.axes_dim} must be three even numbers (time, height, width)"


def vae_problems(cfg: VaeConfig) -> Iterator[str]:
    yield from _dc_ae_problems(cfg) if cfg.kind is VaeKind.dc_ae else _block_problems(cfg)
    given = f"model.vae.tile_px={cfg.tile_px}" + (f", tile_frames={cfg.tile_frames}" if cfg.tile_frames else "")
    yield from (f"{given}: {line}" for line in tile_problems(cfg))


def _block_problems(cfg: VaeConfig) -> Iterator[str]:
    widths, groups = cfg.block_out_channels, cfg.norm_num_groups
    if len(widths) != LEVELS:
        yield f"model.vae.block_out_channels={widths} must have {LEVELS} entries, for {cfg.stride_px} pixels per latent"
    if odd := sorted({w for w in widths if w % groups}):
        yield f"model.vae.block_out_channels={widths}: {odd} are not multiples of norm_num_groups={groups}"


def _dc_ae_problems(cfg: VaeConfig) -> Iterator[str]:
    stages, widths, latent = cfg.dc_ae, cfg.dc_ae.widths, cfg.latent_channels
    if len(widths) < 3 or min(widths) < 1:
        yield f"model.vae.dc_ae.widths={widths} must have 3 or more entries of at least 1"
        return
    for name, values in {"encoder_depths": stages.encoder_depths, "decoder_depths": stages.decoder_depths}.items():
        if len(values) != len(widths) or min(values) < 1:
            yield f"model.vae.dc_ae.{name}={values} must have {len(widths)} entries of at least 1, as widths has"
    if odd := sorted({w for w in widths[DC_AE_CONV_STAGES:] if w % DC_AE_HEAD}):
        yield f"model.vae.dc_ae.widths={widths}: {odd} are not multiples of {DC_AE_HEAD}, the size of a head"
    if widths[-1] % latent:
        yield f"model.vae.dc_ae.widths={widths}: the last is not a multiple of model.vae.latent_channels={latent}"
    if bad := [deeper for width, deeper in pairwise(widths) if 4 * width % deeper]:
        yield f"model.vae.dc_ae.widths={widths}: {bad} do not divide 4 times the width before them"


def joint_problems(model: ModelConfig) -> Iterator[str]:
    latent, patch, packed = model.vae.latent_channels, model.mmdit.patch_size, model.mmdit.in_channels
    if packed != latent * patch**2:
        yield (
            f"model.mmdit.in_channels={packed} must be latent_channels * patch_size^2 = {latent} * {patch}^2 = "
            f"{latent * patch**2}"
        )
