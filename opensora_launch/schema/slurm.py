"""Options of a batch job on a cluster: the part of the schema under `launcher.slurm`."""

from dataclasses import field
from enum import StrEnum

from opensora_launch.schema.settings import settings


class Starter(StrEnum):
    srun = "srun"  # one task per rank
    torchrun = "torchrun"  # one torchrun per node, started by srun


class GpuOption(StrEnum):
    """The option of sbatch that requests the GPUs."""

    gpus_per_node = "gpus_per_node"
    gres = "gres"
    none = "none"  # the site allocates whole nodes, or `extra` holds the option


class Container(StrEnum):
    none = "none"
    pyxis = "pyxis"  # srun --container-image (enroot)
    apptainer = "apptainer"


@settings
class SlurmConfig:
    """The batch job. The topology gives nodes and ranks; null leaves an option to the site's default."""

    job_name: str = "opensora"
    partition: str | None = None
    account: str | None = None
    qos: str | None = None
    time: str | None = None  # in Slurm's format: 90 (minutes), 2:00:00, 1-0
    gpus: GpuOption = GpuOption.gpus_per_node
    gpu_type: str | None = None
    cpus_per_rank: int = 8
    mem: str | None = None  # per node: 200G; 0: all memory of the node
    exclusive: bool = False
    constraint: str | None = None
    switches: str | None = None
    reservation: str | None = None
    nodelist: str | None = None
    exclude: str | None = None
    mail_user: str | None = None
    mail_type: str | None = None
    dependency: str | None = None
    array: int = 1  # number of array tasks, each of the topology's size; they share the videos
    array_limit: int | None = None  # array tasks that run at the same time
    requeue: bool = True  # after preemption, a lost node or the signal; false: exit with code 75
    max_restarts: int = 20
    signal_lead_s: int = 120  # seconds before the time limit at which ranks write checkpoints
    extra: list[str] = field(default_factory=list)  # further options of sbatch: --comment=x
    modules: list[str] = field(default_factory=list)  # environment modules to load before the ranks start
    setup: list[str] = field(default_factory=list)  # shell lines to run after loading the modules
    env: list[str] = field(default_factory=list)  # NAME=VALUE
    starter: Starter = Starter.srun
    python: str | None = None  # null: the Python that submits the job; python3 in a container
    container: Container = Container.none
    image: str | None = None
    mounts: list[str] = field(default_factory=list)  # /host/path:/container/path
    host_suffix: str = ""  # appended to the first node's name if a faster interface has its own host name: -ib0
    head_address: str | None = (
        None  # of the first node (see nodelist); null: its name, then the address Slurm has of it
    )
    interface: str | None = None  # network interface for NCCL and gloo; null: they choose
    connect_timeout_s: float = 30.0  # time in which the first node must answer the others
