"""Which room may import which, and which must start without torch. A new arrow is a decision: it is made here."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import pytest

PACKAGE = "opensora_launch"
ROOT = Path(__file__).parent.parent / PACKAGE
FILES = sorted(ROOT.rglob("*.py"))

FACTS = {
    "errors",
    "cards",
    "batch_job",
    "prices",
    "config",
    "plan",
}  # pure Python: what a user can mend, the schema, the plan
MAY_IMPORT = {
    "errors": set(),
    "cards": set(),
    "batch_job": set(),
    "prices": set(),
    "config": {"errors", "cards", "batch_job", "prices"},
    "plan": {"errors", "cards", "config"},
    "media": {"errors"},
    "telemetry": {"errors"},
    "parallel": {"errors", "plan"},
    "model": {"errors", "config"},  # not parallel: the model does not know that it is split
    "colossal": {"errors", "config", "model", "parallel"},  # the engine of that name, around the same networks
    "sampling": {"errors", "plan"},  # not model and not parallel: the loop gets functions
    "report": FACTS | {"telemetry"},
    "launch": FACTS | {"telemetry"},  # heartbeats and first failures say which rank is to blame
    "worker": FACTS | {"parallel", "model", "sampling", "media", "telemetry"},  # joins them
    # of model only what looks at files, of colossal what looks at installed packages
    "cli": FACTS | {"launch", "media", "report", "telemetry", "model.files", "colossal.require"},
}
# Only inside a function: the inline launcher becomes the worker, a worker started by hand prepares its own run, and
# ColossalAI is imported where it was chosen.
MAY_IMPORT_LATE = {"cli": {"worker"}, "worker": {"cli", "report", "colossal"}}
# A login node has no GPU and often no torch; `--help` answers at once.
WITHOUT_TORCH = [
    "errors",
    "config",
    "plan",
    "telemetry",
    "launch",
    "report",
    "cli",
    "media/prompts.py",
    "model/files.py",
    "colossal/require.py",
]
SLOW = {"torch", "diffusers", "transformers", "accelerate", "colossalai"}
ONLY_IN = {"hydra": {"cli"}, "omegaconf": {"cli", "config"}, "colossalai": {"colossal"}}


class Import(NamedTuple):
    module: str
    late: bool  # inside a function


def room(path: Path) -> str:
    return path.relative_to(ROOT).parts[0].removesuffix(".py")


def files_of(start: str) -> list[Path]:
    """Of a room, or the one file."""
    return [p for p in FILES if room(p) == start or p == ROOT / start]


def imports(tree: ast.AST, package: str, late: bool = False) -> Iterator[Import]:
    """Every imported module by its full name, of `import a.b`, `from a import b` and `from . import b` alike."""
    for node in ast.iter_child_nodes(tree):
        if isinstance(node, ast.Import):
            yield from (Import(alias.name, late) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) + 1 - node.level] if node.level else []
            base = ".".join([*above, *([node.module] if node.module else [])])
            yield from (Import(f"{base}.{alias.name}", late) for alias in node.names)
        else:
            inside = isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda)
            yield from imports(node, package, late or inside)


def faults(source: str, here: str, package: str) -> list[str]:
    """What a file of room `here` imports and may not."""
    if here not in MAY_IMPORT:
        return [f"{here} is no room: a new one is added to MAY_IMPORT, with its arrows"]
    found = []
    for module, late in imports(ast.parse(source), package):
        top, _, rest = module.partition(".")
        if here not in ONLY_IN.get(top, {here}):
            found.append(f"{here} may not import {top}")
        there, _, inner = rest.partition(".")
        if top != PACKAGE or there in ("", "__version__", here):
            continue
        may = MAY_IMPORT[here] | (MAY_IMPORT_LATE.get(here, set()) if late else set())
        if there not in may and f"{there}.{inner.split('.')[0]}" not in may:
            found.append(f"{here} may not import {there}{'' if late else ' at module level'}")
    return found


@pytest.mark.parametrize(
    "path", [p for p in FILES if p.parent != ROOT or p.stem != "__init__"], ids=lambda p: str(p.relative_to(ROOT))
)
def test_imports_follow_the_arrows(path: Path) -> None:
    package = ".".join(path.parent.relative_to(ROOT.parent).parts)
    assert faults(path.read_text(), room(path), package) == []


@pytest.mark.parametrize(
    ("here", "source", "count"),
    [
        ("model", "from opensora_launch.parallel import mesh", 1),
        ("model", "from opensora_launch import parallel, errors", 1),
        ("model", "import opensora_launch.parallel.mesh", 1),
        ("model", "from ..parallel import mesh", 1),
        ("model", "from .. import parallel", 1),
        ("model", "from . import layers", 0),
        ("model", "if True:\n    def f():\n        import opensora_launch.parallel", 1),
        ("cli", "from opensora_launch.worker import main", 1),
        ("cli", "def f():\n    from opensora_launch.worker import main", 0),
        ("cli", "from opensora_launch.model.files import check_files", 0),
        ("cli", "from opensora_launch.model import files, load_mmdit", 1),
        ("cli", "import opensora_launch", 0),
        ("plan", "import hydra.core", 1),
        ("attic", "", 1),
    ],
)
def test_every_form_of_import_is_seen(here: str, source: str, count: int) -> None:
    assert len(faults(source, here, f"{PACKAGE}.{here}")) == count


@pytest.mark.parametrize("start", [s for s in WITHOUT_TORCH if files_of(s)])
def test_starts_without_torch(start: str) -> None:
    relative = [p.relative_to(ROOT.parent).with_suffix("") for p in files_of(start)]
    names = [".".join(p.parts).removesuffix(".__init__") for p in relative]
    code = (
        "import importlib, sys\n"
        f"for name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        f"    if slow := {SLOW!r} & set(sys.modules): sys.exit(f'{{name}} imports {{sorted(slow)}}')\n"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT.parent, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_only_the_worker_starts_the_group_and_reads_its_rank() -> None:
    names = {"init_process_group", "RANK", "LOCAL_RANK", "WORLD_SIZE"}
    found = set()
    for path in FILES:
        for node in ast.walk(ast.parse(path.read_text())):
            match node:
                case ast.Attribute(attr="init_process_group") | ast.Name(id="init_process_group"):
                    found.add(room(path))
                case ast.Subscript(slice=ast.Constant(value=str(key)), ctx=ast.Load()):
                    found |= {room(path)} if key in names else set()
                case ast.Call(func=ast.Attribute(attr="get" | "getenv"), args=[ast.Constant(value=str(key)), *_]):
                    found |= {room(path)} if key in names else set()
    assert found <= {"worker"}
