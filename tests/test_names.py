"""One meaning per name: no module name and no public definition exists twice in the package."""

import ast
from collections import defaultdict
from pathlib import Path

ROOT = Path(__file__).parent.parent / "opensora_launch"
FILES = [p for p in sorted(ROOT.rglob("*.py")) if p.stem not in ("__init__", "__main__")]
# A verb of the command line has a module of its name in cli/; the module that does its work may have that name too.
VERBS = {"compare", "generate", "plan", "verify"}
SAME_THING = {"log", "main"}  # the logger of the ranks; the entry of `python -m`


def public_names(path: Path) -> set[str]:
    """Functions, classes and constants that a module defines, without a leading underscore."""
    names: set[str] = set()
    for node in ast.parse(path.read_text()).body:
        match node:
            case ast.FunctionDef(name=name) | ast.AsyncFunctionDef(name=name) | ast.ClassDef(name=name):
                names.add(name)
            case ast.Assign(targets=targets):
                names |= {found.id for t in targets for found in ast.walk(t) if isinstance(found, ast.Name)}
            case ast.AnnAssign(target=ast.Name(id=name)):
                names.add(name)
    return {name for name in names if not name.startswith("_")}


def test_no_module_name_exists_twice() -> None:
    places = defaultdict(list)
    for path in FILES:
        places[path.stem].append(str(path.relative_to(ROOT)))
    twice = {name: found for name, found in places.items() if len(found) > 1}
    assert {name: found for name, found in twice.items() if name not in VERBS or len(found) > 2} == {}


def test_no_public_name_is_defined_twice() -> None:
    places = defaultdict(list)
    for path in FILES:
        for name in public_names(path):
            places[name].append(str(path.relative_to(ROOT)))
    assert {name: found for name, found in places.items() if len(found) > 1 and name not in SAME_THING} == {}


def test_public_names_are_seen(tmp_path: Path) -> None:
    file = tmp_path / "module.py"
    file.write_text("A, B = 1, 2\nC: int = 3\n_D = 4\ndef e(): pass\nclass F: pass\n")
    assert public_names(file) == {"A", "B", "C", "e", "F"}
