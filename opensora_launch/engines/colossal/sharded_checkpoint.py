"""Read and write ColossalAI's sharded safetensors checkpoints: a folder with an index, for ranks that hold parts."""

from pathlib import Path

from colossalai.booster.plugin.hybrid_parallel_plugin import HybridParallelModule
from colossalai.checkpoint_io import HybridParallelCheckpointIO

from opensora_launch.engines.colossal.cut_mmdit import single_rank_group
from opensora_launch.parallel.mesh import Mesh


def load_checkpoint(module: HybridParallelModule, index: Path, mesh: Mesh) -> None:
    """Load this rank's part from the files of an index, saved on any number of ranks. Names were checked before."""
    single = single_rank_group(mesh)
    HybridParallelCheckpointIO(single, single, mesh.tp.group, single, 0, verbose=False).load_model(module, str(index))


def save_checkpoint(module: HybridParallelModule, folder: Path, mesh: Mesh, megabytes: int = 1024) -> None:
    """Write the whole in files of at most so many MB. All ranks call this; those of the first tp axis write."""
    single = single_rank_group(mesh)
    store = HybridParallelCheckpointIO(mesh.shares.group, single, mesh.tp.group, single, 0, verbose=False)
    store.save_model(module, str(folder), shard=True, use_safetensors=True, size_per_shard=megabytes)
