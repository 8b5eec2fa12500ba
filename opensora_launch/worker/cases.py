"""Run a stored case of `verify` on these ranks, and compare it with its stored tensors and with one rank."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from opensora_launch.engines.choice import choose_engine, chosen_attention
from opensora_launch.engines.placed_weights import blocks_of
from opensora_launch.engines.weight_source import WeightSource
from opensora_launch.errors import UserError
from opensora_launch.media.video import to_uint8
from opensora_launch.model.block_parts import EAGER, Parts
from opensora_launch.model.fp8_products import use_fp8_products
from opensora_launch.model.kernels import KernelCall
from opensora_launch.model.load import mmdit_config
from opensora_launch.model.vae import Autoencoder, decode_latents, encode_pixels, load_vae, posterior_mean
from opensora_launch.parallel.mesh import Axis, Mesh
from opensora_launch.parallel.sharded_model import RowInputs, ShardedModel
from opensora_launch.parallel.streaming import StreamedBlocks
from opensora_launch.parallel.tile_spreading import spread_tiles
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.placement import Placement
from opensora_launch.plan.rows import Guidance
from opensora_launch.plan.verify_spec import VerifyLine
from opensora_launch.sampling.conditions import restore_given
from opensora_launch.sampling.latents import pack, position_ids, unpack
from opensora_launch.sampling.schedule import timesteps
from opensora_launch.schema.autoencoder import DcAeConfig, VaeConfig, VaeKind
from opensora_launch.schema.config import Engine, ModelConfig
from opensora_launch.worker.case_files import VAE_KINDS, Case, kind_of_vae
from opensora_launch.worker.denoise_videos import Batch, StepRecord, denoise_batch

LATENTS = ("final_unpacked", "latent_to_decode")  # stored tensors with the shape of the latents; a case has one or both


@dataclass(frozen=True)
class Ranks:
    """The ranks that a case runs on, and how."""

    meshes: Mapping[int, Mesh]  # by number of rows in a step
    node: Axis  # the ranks of this node that work on the case
    placement: Placement
    kernel: Callable[[torch.dtype, int], KernelCall]  # by dtype and head size
    engine: Engine = Engine.native
    parts: Parts = EAGER
    overlap: bool = False  # Ulysses exchanges while the blocks compute
    fp8_products: bool = False


def run_case(case: Case, ranks: Ranks, record: StepRecord) -> dict[str, Tensor]:
    """Return the compared tensors of the case, on the first rank of the mesh; other ranks may return fewer."""
    with torch.no_grad():
        if case.is_of_vae:
            return _run_vae(case, ranks.meshes[1])
        if case.kind == "t2i2v":
            images, videos = case.stages()
            made = run_case(images, ranks, record)
            first = {"t2i.final_packed": made["final_packed"]}
            if "video" in made:  # uint8 cannot be subtracted
                first["image"] = to_uint8(made["video"])[0, :, 0].permute(1, 2, 0).float()
            return first | run_case(videos, ranks, record)
        model, blocks = _model(case, ranks)
        got = _run_mmdit(case, model) if case.kind == "mmdit" else _run_sampling(case, model, record)
        if blocks:
            blocks.release()
        return got


def _model(case: Case, ranks: Ranks) -> tuple[ShardedModel, StreamedBlocks | None]:
    """Read and place the weights of the case as for a run."""
    where = case.data["weights"]
    path = case.path.parent / where["file"]
    if not path.exists():
        raise UserError(f"{case.path} takes its weights from {path}, which does not exist")
    lora = case.data.get("lora")
    config = ModelConfig(
        folder=str(path.parent),
        mmdit_file=path.name,
        mmdit_prefix=where["prefix"],
        mmdit=mmdit_config(case.config),
        lora=[f"{case.path.parent / lora['folder']}@{lora['scale']}"] if lora else [],
    )
    source = WeightSource(config, case.device, torch.float32)
    mesh = next(iter(ranks.meshes.values()))
    engine = choose_engine(ranks.engine)
    loaded = engine.load_transformer(source, ranks.placement, ranks.node, mesh, lambda nbytes: None)
    if ranks.fp8_products:
        use_fp8_products([*blocks_of(loaded.module).values()])
    kernel = ranks.kernel(source.dtype, config.mmdit.hidden_size // config.mmdit.num_heads)
    sit_out = loaded.blocks.pass_through if loaded.blocks else None
    forward, at_once = partial(loaded.module.forward, parts=ranks.parts), ranks.placement.rows_at_once
    attention = chosen_attention(ranks.engine, overlap=ranks.overlap)
    return ShardedModel(forward, kernel, ranks.meshes, sit_out, at_once, attention), loaded.blocks


def _run_mmdit(case: Case, model: ShardedModel) -> dict[str, Tensor]:
    given = {name.removeprefix("input."): x for name, x in case.tensors.items() if name.startswith("input.")}
    count = given["img"].shape[0]
    rows = [
        RowInputs(
            video=row,
            t=float(given["timesteps"][row]),
            txt=given["txt"][row],
            y_vec=given["y_vec"][row],
            cond=given["cond"][row] if "cond" in given else None,
            guidance=float(given["guidance"][row]) if "guidance" in given else 0.0,
        )
        for row in range(count)
    ]
    return {"output": model.predict(given["img"], given["img_ids"][:1], rows)}


def _run_sampling(case: Case, model: ShardedModel, record: StepRecord) -> dict[str, Tensor]:
    option, patch = case.data["sampling_option"], int(case.config["patch_size"])
    shape = tuple(next(case.tensors[name] for name in LATENTS if name in case.tensors).shape)
    frames, height, width = shape[2:]
    generator = torch.Generator().manual_seed(option["seed"])
    noise = pack(torch.randn(shape, generator=generator), patch).to(case.device)
    if not torch.equal(noise, case.tensors["noise_packed"]):
        raise UserError(f"the noise of {case.path.stem} is not the stored one: its seed or torch's generator differs")
    tokens_per_frame = (height // patch) * (width // patch)
    batch = Batch(
        name=case.path.stem,
        latents=noise,
        img_ids=position_ids(frames, height // patch, width // patch, noise.device),
        branches=_branches(case, shape[0]),
        guidance=_guidance(case),
        times=timesteps(
            option["num_steps"], tokens_per_frame, frames, shift=option["shift"], flow_shift=option.get("flow_shift")
        ),
        latent_frames=frames,
    )
    final = denoise_batch(batch, model, record)
    latents = unpack(final, frames, height, width, patch)
    refs = [x[0] for name, x in sorted(case.tensors.items()) if name.startswith("ref_latent.")]
    latents = torch.stack([restore_given(x, case.data["cond_type"], refs) for x in latents])
    if patch == 1:  # where unpacking only views, the reference puts the given frames into the packed latents too
        final = pack(latents, patch)
    out = {"final_packed": final, "video": latents}
    if spec := case.data.get("vae"):
        vae, cfg = _vae(case, spec)
        run = spread_tiles(model.meshes[1].video)
        tiled = _tiled(cfg, spec["tiles"], space=True, time=not cfg.is_causal)
        pixels = decode_latents(vae, tiled, latents, run)
        out.pop("video")
        if pixels is not None:
            out["video"] = pixels[:, :, : option["num_frames"]]
    return out


def _branches(case: Case, videos: int) -> list[tuple[tuple[Tensor, Tensor, Tensor | None], ...]]:
    """Split the file's rows, [text] * videos + [negative] * videos * 2; a distilled case has only the first part."""
    txt, y_vec, cond = (case.tensors.get(name) for name in ("txt", "y_vec", "cond"))
    assert txt is not None, "read_case() refuses sampling cases without text"
    assert y_vec is not None, "read_case() refuses sampling cases without a text vector"
    count = txt.shape[0]
    rows = [(txt[i], y_vec[i], None if cond is None else cond[i]) for i in range(count)]
    return [tuple(rows[(k * videos + v) % count] for k in range(3)) for v in range(videos)]


def _guidance(case: Case) -> Guidance:
    option = case.data["sampling_option"]
    return Guidance(
        num_steps=option["num_steps"],
        text_scale=option["guidance"],
        image_scale=option["guidance_img"],
        text_osci=option["text_osci"],
        image_osci=option["image_osci"],
        temporal_osci=option["scale_temporal_osci"] and "i2v" in case.data["cond_type"],
        distilled=option["method"] == "distill",
    )


def _run_vae(case: Case, mesh: Mesh) -> dict[str, Tensor]:
    vae, cfg = _vae(case, case.data["vae"])
    spec = case.data["vae"].get("tiles")
    run = spread_tiles(mesh.video)
    out: dict[str, Tensor] = {}
    for name in case.data["compare"]:
        way, *part = name.split(".")
        variant = "" if cfg.kind is VaeKind.image else part.pop(0)
        tiled = _tiled(cfg, spec, space=variant in ("spatial", "both"), time=variant in ("temporal", "both"))
        given = case.tensors["latent" if way == "decode" else "pixels"]
        given = given[:, :, :1] if variant == "image_T1" else given
        got = decode_latents(vae, tiled, given, run) if way == "decode" else encode_pixels(vae, tiled, given, run)
        if got is not None:
            out[name] = posterior_mean(cfg, got) if part == ["latent"] else got
    return out


def _vae(case: Case, spec: Mapping[str, Any]) -> tuple[Autoencoder, VaeConfig]:
    config, kind = spec["config"], VAE_KINDS[kind_of_vae(case.data)]
    if kind is VaeKind.dc_ae:
        stages = DcAeConfig(config["encoder_width_list"], config["encoder_depth_list"], config["decoder_depth_list"])
        factor = config.get("scaling_factor")
        cfg = VaeConfig(kind, stages, latent_channels=config["latent_channels"], scale_factor=factor if factor else 1.0)
    elif kind is VaeKind.image:
        cfg = VaeConfig(
            kind,
            latent_channels=config["z_channels"],
            layers_per_block=config["num_res_blocks"],
            block_out_channels=[config["ch"] * times for times in config["ch_mult"]],
            scale_factor=config["scale_factor"],
            shift_factor=config["shift_factor"],
        )
    else:
        known = {f.name for f in fields(VaeConfig)}
        sizes = {k: v for k, v in config.items() if k in known}  # the tiles give its sample sizes
        cfg = VaeConfig(**sizes, scale_factor=spec["scale_factor"], shift_factor=spec["shift_factor"])
    return load_vae(cfg, case.weights(spec)), cfg


def _tiled(cfg: VaeConfig, spec: Mapping[str, Any] | None, *, space: bool, time: bool) -> VaeConfig:
    """Return the config with the case's tiles, in space and in time or without."""
    if spec is None:
        return replace(cfg, tile_px=None, tile_frames=None)
    px, frames = spec["sample_px"] if space else None, spec["sample_frames"] if time else None
    return replace(cfg, tile_px=px, tile_frames=frames, tile_overlap=spec["overlap"])


def compare_tensors(
    case: str,
    kind: str,
    layout: Layout,
    got: Mapping[str, Tensor],
    alone: Mapping[str, Tensor],
    *,
    bounds: Mapping[str, Mapping[str, float]],
    stored: Mapping[str, Tensor] | None,
) -> list[VerifyLine]:
    """Return one line per tensor in `bounds`: is each element within atol + rtol * |want| of all wanted tensors?

    These are that of one rank, and the stored one if there is any; NaN is never within.
    """
    lines = []
    for name, bound in bounds.items():
        one, kept = alone[name], stored[name] if stored else None
        ok = _within(got[name], one, bound) and (kept is None or _within(got[name], kept, bound))
        to_stored, to_one = None if kept is None else _distance(got[name], kept), _distance(got[name], one)
        lines.append(VerifyLine(case, kind, layout.ranks, str(layout), name, to_stored, to_one, ok))
    return lines


def _within(got: Tensor, want: Tensor, bound: Mapping[str, float]) -> bool:
    room = bound["atol"] + bound["rtol"] * want.abs()
    return got.shape == want.shape and bool(((got - want).abs() <= room).all())


def _distance(got: Tensor, want: Tensor) -> float:
    return float((got - want).abs().max()) if got.shape == want.shape else float("inf")
