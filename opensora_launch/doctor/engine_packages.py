"""Is ColossalAI there, in the version that this engine is written for? Looks at installed packages, imports none."""

from importlib.util import find_spec

from opensora_launch.errors import UserError
from opensora_launch.schema.config import Engine

VERSION = "0.5.0"
NEEDS = ("bitsandbytes", "einops", "galore_torch", "packaging", "peft", "psutil", "tqdm", "transformers")
INSTALL = (
    f"run scripts/install_colossalai, or pip install 'opensora-launch[colossalai]' and then pip install --no-deps "
    f"colossalai=={VERSION}; or use engine=native"
)


def engine_problems(engine: Engine) -> list[str]:
    """One line if the engine cannot run here, with what to do; [] if it can."""
    if engine is not Engine.colossalai:
        return []
    from importlib import metadata  # takes a while, and most runs have the other engine

    try:
        found = metadata.version("colossalai")
    except metadata.PackageNotFoundError:
        return [f"engine=colossalai needs ColossalAI {VERSION}, which is not installed: {INSTALL}"]
    if found != VERSION:
        return [f"engine=colossalai needs ColossalAI {VERSION}, and {found} is installed: {INSTALL}"]
    if absent := [name for name in NEEDS if find_spec(name) is None]:
        return [f"ColossalAI {VERSION} is installed without {', '.join(absent)}, which it needs: {INSTALL}"]
    return []


def must_be_installed(engine: Engine) -> None:
    """Raise UserError if the packages of an engine are missing."""
    if problems := engine_problems(engine):
        raise UserError(problems[0])
