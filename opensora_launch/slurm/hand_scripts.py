"""The scripts of slurm/, for who would rather submit by hand. Pure: tests keep the files what this makes."""

from opensora_launch.schema.slurm import Container, SlurmConfig, Starter
from opensora_launch.slurm.script import hand_script

USE = """\
Make videos on a cluster. Edit the options above, then submit with the arguments of `opensora-launch generate`:

    sbatch slurm/{name} video=768px --prompt "raining, sea"
    sbatch slurm/{name} video=256px --prompts list.csv sampling.num_steps=30

Options on the command line take precedence over those above: sbatch --nodes=4 slurm/{name} ...
The run's folder is under runs/ in the folder where you submit, or in runs_dir=... docs/slurm.md explains the rest."""
ABOUT = {
    "generate.sbatch": "",
    "generate-array.sbatch": "The tasks of the array take prompts from one list until none is left. A slow or dead "
    "task does not block\nthe others. Its videos are made when it is requeued, or by `generate --resume RUN`.",
    "generate-torchrun.sbatch": "Starts one torchrun per node instead of one task per GPU, for sites that require it. "
    "After a failure, srun alone ends sooner.",
    "generate-pyxis.sbatch": "Runs in a container, with the pyxis plugin of enroot (srun --container-image).",
    "generate-apptainer.sbatch": "Runs in a container, with Apptainer.",
}
IMAGE, HERE = "/images/opensora-launch", "/data:/data"


def hand_scripts() -> dict[str, str]:
    """Text by file name."""
    settings = {
        "generate.sbatch": SlurmConfig(time="2:00:00"),
        "generate-array.sbatch": SlurmConfig(time="2:00:00", array=8, array_limit=4),
        "generate-torchrun.sbatch": SlurmConfig(time="2:00:00", starter=Starter.torchrun),
        "generate-pyxis.sbatch": SlurmConfig(
            time="2:00:00", container=Container.pyxis, image=f"{IMAGE}.sqsh", mounts=[HERE]
        ),
        "generate-apptainer.sbatch": SlurmConfig(
            time="2:00:00", container=Container.apptainer, image=f"{IMAGE}.sif", mounts=[HERE]
        ),
    }
    return {name: _script(name, chosen) for name, chosen in settings.items()}


def _script(name: str, settings: SlurmConfig) -> str:
    about = "\n\n".join(text for text in (USE.format(name=name), ABOUT[name]) if text)
    return hand_script(settings, about, nodes=1, ranks_per_node=8)
