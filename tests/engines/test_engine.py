"""The ColossalAI engine on gloo ranks: the reference's cases, and its two ways to move tokens.

Ranks do several things at each start, since each start imports ColossalAI.
"""

import json
import os
import subprocess
import sys
from contextlib import nullcontext
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist

from opensora_launch.model.kernel_choice import choose_kernel
from opensora_launch.model.kernels import attend_alone
from opensora_launch.parallel.mesh import Groups, build_meshes
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.plan import Machine
from opensora_launch.plan.verify_spec import VerifySpec
from opensora_launch.schema.config import Engine, LayoutConfig
from opensora_launch.schema.even_shares import share_slices
from tests.engines import WITH_COLOSSALAI
from tests.ranks import run_ranks
from tests.worker.test_verify import CASES, on_rank

pytestmark = WITH_COLOSSALAI
ROOT, CPU = Path(__file__).parents[2], torch.device("cpu")


def test_the_command_line_verifies_every_reference_case():
    """Cut weights and cut tokens together, 4 ranks against one and against the reference's tensors."""
    words = ["engine=colossalai", "topology=cpu4", "layout.tp=2", "layout.ulysses=2"]
    argv = [sys.executable, "-m", "opensora_launch.cli", "verify", *words]
    argv += [word for case in CASES for word in ("--case", str(case))]
    done = subprocess.run(argv, capture_output=True, text=True, cwd=ROOT, env=os.environ | {"OMP_NUM_THREADS": "1"})
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert len(lines) == sum(len(json.loads(case.read_text())["compare"]) for case in CASES)
    assert all("ranks=4 layout=dp1,cfg1,ring1,ulysses2,tp2 " in line and line.endswith("ok=true") for line in lines)


def verified_on_rank(specs: list[tuple[VerifySpec, str]]) -> None:
    for spec, attempt in specs:
        on_rank(spec, attempt)


@pytest.mark.parametrize(
    ("ranks", "layouts"),
    [
        (2, [LayoutConfig(tp=2), LayoutConfig(ulysses=2), LayoutConfig(ring=2)]),
        (4, [LayoutConfig(ring=2, tp=2), LayoutConfig(cfg=2, tp=2)]),
    ],
    ids=["2 ranks", "4 ranks"],
)
def test_reference_cases_hold(ranks, layouts, tmp_path):
    """tp, all_to_all (ulysses) and ring_attn (ring) alone; ring_attn x tp and guidance rows x tp."""
    sampling = ["sampling_t2v", "sampling_i2v_head"] if ranks == 2 else []
    cases = [case for case in CASES if case.stem.startswith("mmdit") or case.stem in sampling]
    specs: list[tuple[VerifySpec, str]] = []
    for layout in layouts:
        folder = tmp_path / str(len(specs))
        folder.mkdir()
        names, machine = tuple(map(str, cases)), Machine("cpu", 1, ranks, 2)
        specs.append((VerifySpec(machine, layout, "auto", 1, 60.0, names, engine=Engine.colossalai), str(folder)))
    run_ranks(ranks, tmp_path, verified_on_rank, specs, timeout=200.0)
    for _, folder in specs:
        lines = [json.loads(line) for line in (Path(folder) / "verify.jsonl").read_text().splitlines()]
        assert {line["case"] for line in lines} == {case.stem for case in cases}
        assert [line for line in lines if not line["ok"]] == []
        assert any(line["max_abs_one_rank"] > 0 for line in lines), "it ran another way than one rank does"


SHARES = [(rows, tokens, heads) for rows in (1, 2) for tokens, heads in ((11, 4), (12, 6))]
MODES = (Layout(ulysses=3), Layout(ring=3))


def attended_on_rank() -> list[tuple[float, list[int]]]:
    """Distance from whole attention, and bytes sent, of each mode and shape."""
    from opensora_launch.engines.colossal.sequence_modes import colossal_attention

    sent: list[int] = []

    def record(axis: str, ranks: tuple[int, ...], nbytes: int) -> Any:
        sent.append(nbytes)
        return nullcontext()

    kernel = choose_kernel("cpu_flash", device=CPU, dtype=torch.float64, head_dim=8).call
    meshes, found = build_meshes(MODES, dist.get_rank(), Groups(timedelta(seconds=60)), record), []
    for layout in MODES:
        for rows, tokens, heads in SHARES:
            rng = torch.Generator().manual_seed(0)
            q, k, v = (torch.randn(rows, tokens, heads, 8, generator=rng, dtype=torch.float64) for _ in range(3))
            own = share_slices(tokens, 3)[dist.get_rank()]
            got = colossal_attention(meshes[layout], tokens, kernel)(*(x[:, own] for x in (q, k, v)))
            found.append((float((got - kernel(q, k, v)[0][:, own]).abs().max()), list(sent)))
            sent.clear()
    return found


def test_shares_and_heads_need_not_divide(tmp_path):
    """all_to_all trades q, k, v and back; ring_attn passes keys and values twice among three; both padded to equal."""
    for found in run_ranks(3, tmp_path, attended_on_rank):
        results = iter(found)
        for layout in MODES:
            for rows, tokens, heads in SHARES:
                distance, sent = next(results)
                assert distance < 1e-12
                room = rows * -(-tokens // 3) * 8 * 8  # bytes of one head of our tokens
                trade, hop = 2 * room * -(-heads // 3), 2 * room * heads
                assert sent == ([trade] * 4 if layout.ulysses > 1 else [hop] * 2)


def ringed_on_gpu() -> float:
    """ring_attn in bf16 by NCCL, against whole attention in fp32."""
    from opensora_launch.engines.colossal.sequence_modes import colossal_attention

    rank, layout = dist.get_rank(), Layout(ring=2)
    device = torch.device("cuda", rank)
    torch.cuda.set_device(device)
    dist.destroy_process_group()
    dist.init_process_group("nccl", init_method=f"file://{os.environ['RING_STORE']}", rank=rank, world_size=2)
    mesh = build_meshes([layout], rank, Groups(timedelta(seconds=60)), lambda *_: nullcontext())[layout]
    kernel = choose_kernel("auto", device=device, dtype=torch.bfloat16, head_dim=64).call
    rng = torch.Generator().manual_seed(0)
    q, k, v = (torch.randn(1, 1001, 8, 64, generator=rng).to(device) for _ in range(3))
    want = attend_alone(q, k, v)
    own = share_slices(1001, 2)[rank]
    got = colossal_attention(mesh, 1001, kernel)(*(x[:, own].bfloat16() for x in (q, k, v)))
    return float((got.float() - want[:, own]).abs().max())


@pytest.mark.gpu
@pytest.mark.skipif(
    torch.cuda.device_count() < 2, reason="ring_attn over NCCL needs two GPUs; on CPU ranks it runs above"
)
def test_ring_attn_on_gpus(tmp_path, monkeypatch):
    monkeypatch.setenv("RING_STORE", str(tmp_path / "store"))
    assert max(run_ranks(2, tmp_path, ringed_on_gpu)) < 0.02
