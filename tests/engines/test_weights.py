"""What the engine does with weights: its layers and policies, its checkpoints, T5, and its own Booster with ours."""

import json
import shutil
from contextlib import nullcontext
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from safetensors.torch import load_file, save_file

from opensora_launch.engines.choice import choose_engine
from opensora_launch.engines.weight_source import WeightSource
from opensora_launch.model.mmdit import MMDiT
from opensora_launch.model.shapes import mmdit_shapes
from opensora_launch.model.text_encoders import Embedding, load_text_encoders
from opensora_launch.model.weight_files import check_weights
from opensora_launch.model.weights import random_tensor
from opensora_launch.parallel.mesh import Axis, Groups, Mesh, build_meshes
from opensora_launch.plan.layout import Layout
from opensora_launch.plan.placement import Placement
from opensora_launch.schema.config import Engine, Init, MmditConfig, ModelConfig
from tests.engines import WITH_COLOSSALAI
from tests.model.text_folders import WORDS, make_clip, make_t5, tiny_model
from tests.ranks import run_ranks

pytestmark = WITH_COLOSSALAI
CPU = torch.device("cpu")
CFG = MmditConfig(
    in_channels=4, vec_in_dim=6, context_in_dim=8, hidden_size=32, num_heads=4, depth=1, depth_single_blocks=2,
    axes_dim=[2, 2, 4],
)  # fmt: skip
SHAPES = {name: torch.Size(shape) for name, shape in mmdit_shapes(CFG).items()}


def drawn(name: str) -> torch.Tensor:
    return random_tensor(name, SHAPES[name], 0, CPU)


def mesh_of(layout: Layout) -> Mesh:
    return build_meshes([layout], dist.get_rank(), Groups(timedelta(seconds=60)), lambda *_: nullcontext())[layout]


def source_of(**more: Any) -> WeightSource:
    return WeightSource(ModelConfig(mmdit=CFG, **more), CPU, torch.bfloat16)


def engine_module(source: WeightSource, engine: Engine, mesh: Mesh) -> MMDiT:
    return choose_engine(engine).load_transformer(source, Placement(), mesh.video, mesh, lambda nbytes: None).module


def boosted(mesh: Mesh) -> float:
    """As a user of ColossalAI runs it: its Booster and its own plugin, with groups of its own, and our policy."""
    from colossalai.booster import Booster
    from colossalai.booster.plugin import HybridParallelPlugin

    from opensora_launch.engines.colossal.policies import MmditPolicy

    module, whole = MMDiT(CFG), MMDiT(CFG).requires_grad_(False)
    for m in (module, whole):
        m.load_state_dict({name: drawn(name) for name in SHAPES})
    plugin = HybridParallelPlugin(tp_size=2, pp_size=1, precision="fp32", custom_policy=MmditPolicy(mesh.tp))
    made, *_ = Booster(plugin=plugin).boost(module)
    rng = torch.Generator().manual_seed(0)
    given = {
        "img": torch.randn(1, 6, 4, generator=rng), "img_ids": torch.zeros(1, 6, 3),
        "txt": torch.randn(1, 3, 8, generator=rng), "txt_ids": torch.zeros(1, 3, 3), "timesteps": torch.tensor([0.5]),
        "y_vec": torch.randn(1, 6, generator=rng), "cond": torch.randn(1, 6, 8, generator=rng),
    }  # fmt: skip
    with torch.no_grad():
        return float((made(**given) - whole(**given)).abs().max())


def built_on_rank() -> tuple[set[str], dict[str, torch.Tensor], dict[str, torch.Tensor], float]:
    """Kinds of layers, the part that they hold and that ours hold, and the distance under its own Booster."""
    mesh, source = mesh_of(Layout(tp=2)), source_of(init=Init.random)
    module, native = (engine_module(source, engine, mesh) for engine in (Engine.colossalai, Engine.native))
    kinds = {type(layer).__name__ for layer in module.modules()}
    theirs, ours = ({name: p.detach().clone() for name, p in m.named_parameters()} for m in (module, native))
    return kinds, theirs, ours, boosted(mesh)


def test_its_layers_hold_the_parts_that_ours_hold(tmp_path):
    for rank, (kinds, theirs, ours, distance) in enumerate(run_ranks(2, tmp_path, built_on_rank)):
        assert {"FusedColumns", "FusedRows", "GatheredColumns", "SummedRows", "Linear1D_Col"} <= kinds
        assert {p.dtype for p in theirs.values()} == {torch.bfloat16}
        summed = {"img_attn.proj.bias", "txt_attn.proj.bias", "img_mlp.2.bias", "txt_mlp.2.bias", "linear2.bias"}
        only = {name.partition(".")[2].partition(".")[2] for name in theirs.keys() - ours.keys()}
        assert only == (summed if rank else set()), "of ours the first rank alone has a bias that sums"
        assert all(torch.equal(theirs[name], ours[name]) for name in ours)
        assert 0 < distance < 1e-5


def stored_and_read_on_rank(folder: str) -> dict[str, tuple[Layout, dict[str, torch.Tensor]]]:
    """Save on cfg 2 x tp 2, read on other layouts and by both engines, sharded placements included."""
    from opensora_launch.engines.colossal.engine import cut_by_policy, load_by_layer, save_checkpoint

    saving = mesh_of(Layout(cfg=2, tp=2))
    wrapped = cut_by_policy(CFG, saving, CPU, torch.bfloat16)
    load_by_layer(wrapped.unwrap(), drawn, lambda nbytes: None)
    save_checkpoint(wrapped, Path(folder), saving, megabytes=0)
    dist.barrier()
    source = source_of(folder=str(Path(folder).parent), mmdit_file=f"{Path(folder).name}/model.safetensors")
    found = {}
    for engine, layout in (
        (Engine.colossalai, Layout(tp=4)),
        (Engine.colossalai, Layout(ring=2, tp=2)),
        (Engine.native, Layout(dp=2, tp=2)),
    ):
        module = engine_module(source, engine, mesh_of(layout))
        found[f"{engine} {layout}"] = (layout, {name: p.detach().clone() for name, p in module.named_parameters()})
    return found


def test_its_sharded_checkpoints_are_read_on_any_ranks_and_by_both_engines(tmp_path):
    folder = tmp_path / "saved"
    ranks = run_ranks(4, tmp_path, stored_and_read_on_rank, str(folder))
    assert (folder / "model.safetensors.index.json").is_file()
    files = sorted(folder.glob("*.safetensors"))
    assert len(files) > 2
    for way, (layout, _) in ranks[0].items():
        for name, dim in (("double_blocks.0.img_attn.k_proj.weight", 0), ("double_blocks.0.img_mlp.2.weight", 1)):
            whole = torch.cat([rank[way][1][name] for rank in ranks[: layout.tp]], dim)
            assert torch.equal(whole, drawn(name).bfloat16()), way
    model = ModelConfig(mmdit=CFG, folder=str(tmp_path))
    assert check_weights(folder / "model.safetensors", mmdit_shapes(CFG), model, "mmdit_prefix") == []
    wider = mmdit_shapes(replace(CFG, depth=2))
    assert (
        "does not match the config: 32 missing: double_blocks.1"
        in check_weights(folder / "model.safetensors", wider, model, "mmdit_prefix")[0]
    )


def texts_on_rank(asked: list[tuple[ModelConfig, list[str]]]) -> list[list[Embedding] | None]:
    """What this rank has of each model's texts; no texts are those that were all known."""
    mesh = mesh_of(Layout(ulysses=2, tp=2))
    world = Axis("text", (0, 1, 2, 3), dist.get_rank(), mesh.video.group, lambda *_: nullcontext())
    found: list[list[Embedding] | None] = []
    for model, texts in asked:
        team = choose_engine(Engine.colossalai).text_team(world, mesh, model, CPU, torch.float32)
        found.append(None)
        if world.index == 0:
            found[-1] = team.encode(texts) if texts else None
            team.dismiss()
        elif world.index in team.axis.ranks:
            team.help()
    return found


def test_t5_is_cut_over_the_first_tp_axis(tmp_path):
    """Gated feed-forwards as in T5 v1.1, where ColossalAI's own policy fails, and plain ones."""
    gated = tmp_path / "gated"
    for name, network in (("t5", make_t5(gated / "t5")), ("clip", make_clip(gated / "clip"))):
        tensors = {k: v.clone().contiguous() for k, v in network.state_dict().items()}
        save_file(tensors, gated / name / "model.safetensors")
    models = [tiny_model(gated), tiny_model(plain_t5(gated, tmp_path / "plain"))]
    asked = [(models[0], WORDS), (models[0], []), (models[1], WORDS[:1])]
    first, *others = run_ranks(4, tmp_path, texts_on_rank, asked)
    assert others == [[None] * 3] * 3
    for got, (model, texts) in zip(first, asked, strict=True):
        if got is None:
            assert texts == []
            continue
        for cut, want in zip(
            got, load_text_encoders(model, device=CPU, dtype=torch.float32).encode(texts), strict=True
        ):
            torch.testing.assert_close(cut.t5, want.t5, rtol=1e-5, atol=1e-5)
            torch.testing.assert_close(cut.clip, want.clip, rtol=1e-5, atol=1e-5)


def plain_t5(folder: Path, target: Path) -> Path:
    """The same encoders with T5's first kind of feed-forward."""
    shutil.copytree(folder, target)
    config = json.loads((target / "t5/config.json").read_text())
    config |= {"feed_forward_proj": "relu", "is_gated_act": False, "dense_act_fn": "relu"}
    (target / "t5/config.json").write_text(json.dumps(config))
    tensors = load_file(target / "t5/model.safetensors")
    renamed = {name.replace("wi_0", "wi"): x for name, x in tensors.items() if "wi_1" not in name}
    save_file(renamed, target / "t5/model.safetensors")
    return target
