"""`verify` on one rank: compute everything once on all ranks and once on the first, with one line per tensor."""

import json
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from opensora_launch.engines.choice import choose_engine
from opensora_launch.engines.weight_source import WeightSource
from opensora_launch.model.kernel_choice import choose_kernel
from opensora_launch.model.kernels import KernelCall
from opensora_launch.model.text_encoders import Embedding
from opensora_launch.model.vae import assemble
from opensora_launch.parallel.host_memory import free_caches
from opensora_launch.parallel.mesh import Groups, build_meshes, node_axis
from opensora_launch.parallel.sharded_model import ShardedModel
from opensora_launch.parallel.warm_up import warm_up
from opensora_launch.plan.layout import Layout, LayoutFacts, layouts_by_rows, rules_of
from opensora_launch.plan.placement import Placement
from opensora_launch.plan.plan import Plan
from opensora_launch.plan.rank_sets import device_sets, gathers_on_node
from opensora_launch.plan.verify_spec import VerifyLine, VerifySpec
from opensora_launch.rundir import AttemptDir
from opensora_launch.schema.config import Engine, NumericsConfig
from opensora_launch.telemetry.heartbeat import Heartbeat
from opensora_launch.worker.case_files import Case, read_case
from opensora_launch.worker.cases import Ranks, compare_tensors, run_case
from opensora_launch.worker.compiled_parts import chosen_parts
from opensora_launch.worker.context import RankContext
from opensora_launch.worker.decode_videos import decode_latent
from opensora_launch.worker.denoise_videos import denoise_videos
from opensora_launch.worker.encode_references import encode_references
from opensora_launch.worker.failures import stop_stalled
from opensora_launch.worker.load_networks import Networks, load_networks, shard_model
from opensora_launch.worker.numerics import set_numerics
from opensora_launch.worker.process_group import BACKSTOP, gathered
from opensora_launch.worker.rank import Rank
from opensora_launch.worker.run import load_networks_and_texts
from opensora_launch.worker.set_up import own_device, set_up

# Layouts may differ only in rounding, which guidance amplifies over the steps.
BOUNDS = {name: {"rtol": x, "atol": x} for name, x in (("fp32", 2e-3), ("fp16", 0.05), ("bf16", 0.1))}


def run_verify(spec: VerifySpec, attempt: AttemptDir, me: Rank, beat: Heartbeat) -> None:
    """Write verify.jsonl on the first rank: one line per compared tensor."""
    set_numerics(spec.threads_per_rank, NumericsConfig())
    device = own_device(spec.machine.device, me)
    beat.watch(spec.timeout_s, lambda verdict: stop_stalled(attempt, verdict))
    everyone = dist.new_group(timeout=BACKSTOP)  # the first rank may compute alone for a long time
    lines: list[VerifyLine] = []
    for path in spec.cases:
        lines += _verify_case(read_case(Path(path), device), spec, me)
    if spec.plan:
        lines += _verify_plan(spec.plan, attempt, me, beat)
    if me.rank == 0:
        text = "".join(json.dumps(asdict(line)) + "\n" for line in lines)
        attempt.verify_lines.write_text(text, encoding="utf-8")
    dist.barrier(everyone)


def unrecorded(*_: Any) -> nullcontext[None]:
    """Record nothing about an exchange or a step."""
    return nullcontext()


def _verify_case(case: Case, spec: VerifySpec, me: Rank) -> list[VerifyLine]:
    facts = LayoutFacts(
        ranks=me.world,
        gpus_per_node=me.local_world,
        batches=1,
        max_rows=case.rows,
        total_tokens=case.tokens,
        rules=rules_of(case.mmdit, spec.engine, spec.placement),
    )
    layouts = layouts_by_rows(facts, spec.layout)
    alone, groups, steps = Layout(dp=me.world), Groups(BACKSTOP), [layout for _, layout in layouts]
    meshes = build_meshes(dict.fromkeys([*steps, alone]), me.rank, groups, unrecorded)

    @cache
    def kernel(dtype: torch.dtype, head_dim: int) -> KernelCall:
        """Choose on all ranks together; rank 0, which alone makes the comparison, then has it."""
        chosen = choose_kernel(spec.attention, device=case.device, dtype=dtype, head_dim=head_dim, agree=gathered)
        return chosen.call

    by_rows = {rows: meshes[layout] for rows, layout in layouts}
    node = node_axis(by_rows[case.rows], me.local_world, me.world, groups)
    on_node = gathers_on_node(spec.engine, steps[-1], spec.placement)
    warm_up(device_sets(steps, me.rank, me.local_world, on_node=on_node), me.rank, groups, unrecorded, case.device)
    parts = chosen_parts(spec.compile, case.device, gathered)
    got = run_case(case, Ranks(by_rows, node, spec.placement, kernel, spec.engine, parts, spec.overlap), unrecorded)
    if me.rank != 0:
        return []
    by_one = got
    if me.world > 1 or spec.placement != Placement():
        solo = meshes[alone]
        on_one = Ranks({rows: solo for rows, _ in layouts}, solo.video, Placement(), kernel)
        by_one = run_case(case, on_one, unrecorded)
    bounds = case.data["compare"]
    return compare_tensors(case.path.stem, case.kind, steps[-1], got, by_one, bounds=bounds, stored=case.tensors)


def _verify_plan(plan: Plan, attempt: AttemptDir, me: Rank, beat: Heartbeat) -> list[VerifyLine]:
    """Make the plan's first batch in its layouts and on one rank; compare latents and pixels."""
    alone = Layout(dp=me.world)
    ctx = set_up(plan, attempt, me, beat, (time.monotonic(), time.time()), more=[alone])
    networks, texts = load_networks_and_texts(ctx)
    layouts = dict(plan.layouts)
    got = _make(ctx, networks, shard_model(ctx, networks, layouts), texts)
    if networks.blocks:
        networks.blocks.release()
    if me.rank != 0:
        return []
    del networks  # its memory is needed for all weights on one rank
    free_caches(ctx.device)
    solo = ctx.meshes[alone]
    source = WeightSource(plan.model, ctx.device, ctx.dtype)
    whole = load_networks(source, choose_engine(Engine.native), Placement(), solo.video, solo, beat.loaded)
    on_one = shard_model(ctx, whole, dict.fromkeys(layouts, alone))
    by_one = _make(replace(ctx, mesh=solo), whole, on_one, texts)
    bounds, layout = dict.fromkeys(by_one, BOUNDS[plan.precision]), plan.layouts[-1][1]
    return compare_tensors(plan.model.name, "plan", layout, got, by_one, bounds=bounds, stored=None)


def _make(
    ctx: RankContext, networks: Networks, model: ShardedModel, texts: Mapping[str, Embedding]
) -> dict[str, Tensor]:
    videos = ctx.plan.batches[0]
    references = [encode_references(ctx, networks.vae, video) for video in videos]
    out: dict[str, Tensor] = {}
    for video, latent in zip(videos, denoise_videos(ctx, model, texts, videos, references), strict=True):
        if latent is None:
            raise FloatingPointError(f"the latents of {video.name} are not finite in {ctx.plan.precision}")
        grid, regions = decode_latent(ctx, networks.vae, latent)
        if regions is not None:
            pixels = assemble(grid, regions)[0, :, : ctx.plan.geometry.num_frames]
            out |= {f"{video.name}.latent": latent.float(), f"{video.name}.video": pixels.float()}
    return out
