"""ColossalAI's sharded safetensors checkpoints: a folder with an index, of ranks that each hold a part."""

from pathlib import Path

from colossalai.booster.plugin.hybrid_parallel_plugin import HybridParallelModule
from colossalai.checkpoint_io import HybridParallelCheckpointIO

from opensora_launch.engines.colossal.transformer import alone
from opensora_launch.parallel.mesh import Mesh


def load_checkpoint(module: HybridParallelModule, index: Path, mesh: Mesh) -> None:
    """Fill our part from the files of an index, saved on any number of ranks. Its names were checked before."""
    single = alone(mesh).group
    HybridParallelCheckpointIO(single, single, mesh.tp.group, single, 0, verbose=False).load_model(module, str(index))


def save_checkpoint(module: HybridParallelModule, folder: Path, mesh: Mesh, megabytes: int = 1024) -> None:
    """Write the whole, in files of so many MB at most; the ranks of the first tp axis do. All call it together."""
    single = alone(mesh).group
    store = HybridParallelCheckpointIO(mesh.shares.group, single, mesh.tp.group, single, 0, verbose=False)
    store.save_model(module, str(folder), shard=True, use_safetensors=True, size_per_shard=megabytes)
