"""The scripts of slurm/, for users who submit by hand. Pure. A test keeps those files equal to this output."""

from opensora_launch.schema.slurm import Container, SlurmConfig, Starter
from opensora_launch.slurm.script import hand_script

_USE = """\
Make videos on the GPUs of a cluster. Edit the options above, then submit with the arguments of `generate`:

    sbatch slurm/{name} video=768px --prompt "raining, sea"
    sbatch slurm/{name} video=256px --prompts list.csv sampling.num_steps=30

Options on the command line override those above: sbatch --nodes=4 slurm/{name} ...
The run's folder is created in runs/ of the folder where you submit, or in runs_dir=... See docs/slurm.md."""
_ABOUT = {
    "generate.sbatch": "",
    "generate-array.sbatch": "This is an array: its tasks take prompts from one list until none is left.\n"
    "A task that is slow or dies does not block the rest. Its videos are made when it is requeued, or by\n"
    "`opensora-launch generate --resume RUN`.",
    "generate-torchrun.sbatch": "One torchrun per node instead of one task per GPU, for sites that need it.\n"
    "With one task per GPU, a job ends sooner after a failure.",
    "generate-pyxis.sbatch": "In a container, with the pyxis plugin of enroot (srun --container-image).",
    "generate-apptainer.sbatch": "In a container, with Apptainer.",
}
_IMAGE, _MOUNT = "/images/opensora-launch", "/data:/data"


def hand_scripts() -> dict[str, str]:
    """The text of each script, by file name."""
    settings = {
        "generate.sbatch": SlurmConfig(time="2:00:00"),
        "generate-array.sbatch": SlurmConfig(time="2:00:00", array=8, array_limit=4),
        "generate-torchrun.sbatch": SlurmConfig(time="2:00:00", starter=Starter.torchrun),
        "generate-pyxis.sbatch": SlurmConfig(
            time="2:00:00", container=Container.pyxis, image=f"{_IMAGE}.sqsh", mounts=[_MOUNT]
        ),
        "generate-apptainer.sbatch": SlurmConfig(
            time="2:00:00", container=Container.apptainer, image=f"{_IMAGE}.sif", mounts=[_MOUNT]
        ),
    }
    return {name: _script(name, chosen) for name, chosen in settings.items()}


def _script(name: str, settings: SlurmConfig) -> str:
    about = "\n\n".join(text for text in (_USE.format(name=name), _ABOUT[name]) if text)
    return hand_script(settings, about, nodes=1, ranks_per_node=8)
