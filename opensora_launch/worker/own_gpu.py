"""Give each rank of a node its own MIG instance. Runs before torch, which reads CUDA_VISIBLE_DEVICES once."""

from collections.abc import MutableMapping

from opensora_launch.machine.visible import own_instance
from opensora_launch.slurm.task_env import read_step


def take_own_instance(env: MutableMapping[str, str]) -> None:
    """Leave this rank's entry in CUDA_VISIBLE_DEVICES if that names MIG instances, of which CUDA shows the first only.

    Where ranks see whole GPUs, each sees all of them and takes its own by number.
    """
    step = read_step(env)
    if "LOCAL_RANK" in env and "LOCAL_WORLD_SIZE" in env:
        place, count = int(env["LOCAL_RANK"]), int(env["LOCAL_WORLD_SIZE"])
    else:
        place, count = (step.local_rank, step.local_tasks) if step else (0, 1)
    if own := own_instance(env.get("CUDA_VISIBLE_DEVICES"), place, count):
        env["CUDA_VISIBLE_DEVICES"] = own
