"""`verify` on one rank: everything once on all ranks, once on the first alone, and a line per compared tensor."""

import json
import time
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from opensora_launch.engines.native import Source
from opensora_launch.model.attention import choose_attention
from opensora_launch.model.vae import assemble
from opensora_launch.parallel.attention import Kernel
from opensora_launch.parallel.mesh import build_meshes, node_axis
from opensora_launch.parallel.rows import ShardedModel
from opensora_launch.plan.layout import Layout, LayoutFacts, layouts_by_rows, rules_of
from opensora_launch.plan.placement import Placement
from opensora_launch.plan.plan import Plan
from opensora_launch.plan.verify_spec import VerifyLine, VerifySpec
from opensora_launch.rundir import AttemptDir
from opensora_launch.schema.config import Engine, NumericsConfig
from opensora_launch.telemetry.heartbeat import Heartbeat
from opensora_launch.worker import start
from opensora_launch.worker.cases import Case, Ranks, compare, distance, read_case, run_case, within
from opensora_launch.worker.generate import DTYPES, Job, decode_latent, denoise_videos
from opensora_launch.worker.networks import Networks, read_networks
from opensora_launch.worker.run import BACKSTOP, load, settle, stop_stalled
from opensora_launch.worker.start import Rank
from opensora_launch.worker.texts import Embedding

# Between layouts only rounding may differ; over the steps guidance makes it larger.
BOUNDS = {name: {"rtol": x, "atol": x} for name, x in (("fp32", 2e-3), ("fp16", 0.05), ("bf16", 0.1))}


def run_verify(spec: VerifySpec, attempt: AttemptDir, me: Rank, beat: Heartbeat) -> None:
    """Write verify.jsonl, a line per compared tensor, from the first rank."""
    start.set_numerics(spec.threads_per_rank, NumericsConfig())
    device = start.pick_device(spec.machine.device, me)
    beat.watch(spec.timeout_s, lambda verdict: stop_stalled(attempt, verdict))
    everyone = dist.new_group(timeout=BACKSTOP)  # the first rank may compute alone for long while the others wait
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
    alone = Layout(dp=me.world)
    meshes = build_meshes([*dict.fromkeys(layout for _, layout in layouts), alone], me.rank, BACKSTOP, unrecorded)

    def kernel(dtype: torch.dtype, head_dim: int) -> Kernel:
        return choose_attention(spec.attention, device=case.device, dtype=dtype, head_dim=head_dim).call

    by_rows = {rows: meshes[layout] for rows, layout in layouts}
    node = node_axis(by_rows[case.rows].video, me.local_world, me.world, BACKSTOP)
    got = run_case(case, Ranks(by_rows, node, spec.placement, kernel, spec.engine), unrecorded)
    if me.rank != 0:
        return []
    by_one = got
    if me.world > 1 or spec.placement != Placement():
        solo = meshes[alone]
        on_one = Ranks({rows: solo for rows, _ in layouts}, solo.video, Placement(), kernel)
        by_one = run_case(case, on_one, unrecorded)
    return compare(case, got, by_one, layouts[-1][1])


def _verify_plan(plan: Plan, attempt: AttemptDir, me: Rank, beat: Heartbeat) -> list[VerifyLine]:
    """The plan's first batch in its layouts and on one rank, to latents and to pixels."""
    alone = Layout(dp=me.world)
    site = settle(plan, attempt, me, beat, (time.monotonic(), time.time()), more=[alone])
    networks, texts = load(site)
    layouts = dict(plan.layouts)
    got = _make(site.job, networks, site.model(networks, layouts), texts)
    if networks.blocks:
        networks.blocks.release()
    if me.rank != 0:
        return []
    solo = site.meshes[alone]
    source = Source(plan.model, site.job.device, DTYPES[plan.precision])
    whole = read_networks(source, Engine.native, Placement(), solo.video, solo, beat.loaded)
    by_one = _make(replace(site.job, mesh=solo), whole, site.model(whole, dict.fromkeys(layouts, alone)), texts)
    bound, layout = BOUNDS[plan.precision], plan.layouts[-1][1]
    return [
        VerifyLine(
            case=plan.model.name,
            kind="plan",
            ranks=me.world,
            layout=str(layout),
            tensor=name,
            max_abs_stored=None,
            max_abs_one_rank=distance(got[name], by_one[name]),
            ok=within(got[name], by_one[name], bound),
        )
        for name in by_one
    ]


def _make(job: Job, networks: Networks, model: ShardedModel, texts: Mapping[str, Embedding]) -> dict[str, Tensor]:
    videos = job.plan.batches[0]
    out: dict[str, Tensor] = {}
    for video, latent in zip(videos, denoise_videos(job, networks, model, texts, videos), strict=True):
        grid, regions = decode_latent(job, networks, latent)
        if regions is not None:
            pixels = assemble(grid, regions)[0, :, : job.plan.geometry.num_frames]
            out |= {f"{video.name}.latent": latent.float(), f"{video.name}.video": pixels.float()}
    return out
