"""What a batch job on a cluster asks for: the part of the schema under `launcher.slurm`."""

from dataclasses import dataclass, field
from enum import StrEnum


class Starter(StrEnum):
    srun = "srun"  # one task a rank
    torchrun = "torchrun"  # one torchrun a node, inside srun


class GpuOption(StrEnum):
    """How a job asks for its GPUs."""

    gpus_per_node = "gpus_per_node"
    gres = "gres"
    none = "none"  # the site gives whole nodes, or wants something that `extra` says


class Container(StrEnum):
    none = "none"
    pyxis = "pyxis"  # srun's --container-image, of enroot
    apptainer = "apptainer"


@dataclass
class SlurmConfig:
    """The batch job. Nodes and ranks are the topology's; null leaves an option to the site."""

    job_name: str = "opensora"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None  # as Slurm reads it: 90 (minutes), 2:00:00, 1-0
    gpus: GpuOption = GpuOption.gpus_per_node
    gpu_type: str | None = None
    cpus_per_rank: int = 8
    mem: str | None = None  # of a node: 200G; 0 is all of it
    exclusive: bool = False
    constraint: str | None = None
    switches: str | None = None
    reservation: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    mail_user: str | None = None
    mail_type: str | None = None
    dependency: str | None = None
    array: int = 1  # tasks, each of the topology's size, that share the videos
    array_limit: int | None = None  # tasks at once
    requeue: bool = True  # after preemption, a lost node or the signal; false exits with 75
    max_restarts: int = 20
    signal_lead_s: int = 120  # before the time limit: ranks store where they are
    extra: list[str] = field(default_factory=list)  # more options of sbatch: --comment=x
    modules: list[str] = field(default_factory=list)  # loaded before the ranks start
    setup: list[str] = field(default_factory=list)  # shell lines, after the modules
    env: list[str] = field(default_factory=list)  # NAME=VALUE
    starter: Starter = Starter.srun
    python: str | None = None  # null: the one that submits; python3 in a container
    container: Container = Container.none
    image: str | None = None
    mounts: list[str] = field(default_factory=list)  # /here:/there
    host_suffix: str = ""  # of the first node's name, where a faster interface has a name of its own: -ib0
    interface: str | None = None  # for NCCL and gloo; null leaves the choice to them
    connect_timeout_s: float = 30.0  # for the first node to answer the others
