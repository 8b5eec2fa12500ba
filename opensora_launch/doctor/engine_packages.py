"""Check that ColossalAI is installed in the version that engine=colossalai needs, without importing it."""

from importlib.util import find_spec

from opensora_launch.errors import UserError
from opensora_launch.schema.config import Engine

VERSION = "0.5.0"
NEEDS = ("bitsandbytes", "einops", "galore_torch", "packaging", "peft", "psutil", "tqdm", "transformers")
_HOW_TO_INSTALL = (
    f"run scripts/install_colossalai, or pip install 'opensora-launch[colossalai]' and then pip install --no-deps "
    f"colossalai=={VERSION}; or use engine=native"
)


def engine_problems(engine: Engine) -> list[str]:
    """One line with the fix if the engine cannot run here; [] if it can."""
    if engine is not Engine.colossalai:
        return []
    from importlib import metadata  # slow to import, and most runs use the other engine

    try:
        found = metadata.version("colossalai")
    except metadata.PackageNotFoundError:
        return [f"engine=colossalai needs ColossalAI {VERSION}, but it is not installed: {_HOW_TO_INSTALL}"]
    if found != VERSION:
        return [f"engine=colossalai needs ColossalAI {VERSION}, but {found} is installed: {_HOW_TO_INSTALL}"]
    if absent := [name for name in NEEDS if find_spec(name) is None]:
        return [f"ColossalAI {VERSION} is installed, but it also needs {', '.join(absent)}: {_HOW_TO_INSTALL}"]
    return []


def must_be_installed(engine: Engine) -> None:
    """Raise UserError if the packages of an engine are missing."""
    if problems := engine_problems(engine):
        raise UserError(problems[0])
