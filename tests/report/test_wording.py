"""Every message has words in each language, with parameters that the code gives; and there are no others."""

import ast
import json
import re
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import pytest

from opensora_launch.machine.nvml import THROTTLES
from opensora_launch.plan.placement import Placement, placement_text
from opensora_launch.report.build import build_report
from opensora_launch.report.device_use import throttle_code
from opensora_launch.report.prediction import placement_message
from opensora_launch.report.wording import LANGUAGES, PARAMETER, message, say, templates
from opensora_launch.schema.config import Offload, Shard, Storage
from tests.report.browser import browser
from tests.report.synthetic import a_plan, plain_simulation, write_run

ROOT = Path(__file__).parents[2]
REPORT = ROOT / "opensora_launch" / "report"
SAME = {"ECC", "FLOP/s", "GPU", "VAE", "XID", "s", "MHz", "MFU", "CPU"}  # words of both languages


def words(language: str) -> dict[str, dict[str, str]]:
    found: dict[str, dict[str, str]] = json.loads((REPORT / "words" / f"{language}.json").read_text())
    return found


def parameters(template: str) -> set[str]:
    return {found[1] for found in PARAMETER.finditer(template)}


def calls(*names: str) -> Iterator[tuple[str, list[str], set[str], bool]]:
    """Calls of these functions in the package: where, codes, names given, and whether `**` gives more."""
    for path in sorted((ROOT / "opensora_launch").rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.func.id in names and node.args:
                first = node.args[0]
                branches = [first.body, first.orelse] if isinstance(first, ast.IfExp) else [first]
                codes = [b.value for b in branches if isinstance(b, ast.Constant) and isinstance(b.value, str)]
                given = {k.arg for k in node.keywords if k.arg}
                yield f"{path.name}:{node.lineno}", codes, given, any(k.arg is None for k in node.keywords)


def page_source() -> str:
    return "".join(path.read_text() for path in sorted((REPORT / "page").glob("*")))


def test_every_code_is_made_somewhere_and_has_words() -> None:
    """Throttle reasons come from the driver; the codes of all others stand in the source."""
    made = {code for _, codes, _, _ in calls("message") for code in codes} | {throttle_code(why) for why in THROTTLES}
    worded = {key.partition(".")[0] for key in words("en")["messages"]}
    assert made == worded


def test_the_code_gives_every_parameter_of_the_words() -> None:
    table = words("en")["messages"]
    lacking = {
        (where, key): missing
        for where, codes, given, more in calls("message")
        for code in codes
        for key in table
        if key.partition(".")[0] == code and not more and (missing := parameters(table[key]) - given)
    }
    assert lacking == {}


@pytest.mark.parametrize("language", LANGUAGES)
def test_languages_have_the_same_words(language: str) -> None:
    """The same codes with the same parameters; a code is either a message or a label."""
    english, other = words("en"), words(language)
    assert not english["messages"].keys() & english["labels"].keys()
    for kind, table in english.items():
        assert list(other[kind]) == list(table)
        for key, template in table.items():
            assert parameters(other[kind][key]) == parameters(template), key


def test_korean_is_korean() -> None:
    """Nothing was left in English, but for what is the same in both."""
    english, korean = templates("en"), templates("ko")
    own = {key for key, text in english.items() if set(re.findall("[A-Za-z/]+", PARAMETER.sub("", text))) - SAME}
    assert len(own) > 250
    assert {key for key in own if not re.search("[가-힣]", korean[key])} == set()


def test_every_label_is_used_and_every_used_one_is_there() -> None:
    """In the page or in Python; a text "phase_" is the beginning of several labels."""
    labels = set(words("en")["labels"])
    page = page_source()
    used = {code for _, codes, _, _ in calls("label") for code in codes}
    used |= set(re.findall(r"""\bt\("(\w+)"[,)]""", page)) | set(re.findall(r'data-(?:text|label)="(\w+)"', page))
    assert used <= labels | set(words("en")["messages"])
    quoted = set(re.findall(r'"(\w+)"', page)) | {
        node.value
        for path in REPORT.glob("*.py")
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.Constant) and isinstance(node.value, str)
    }
    begun = {text for text in quoted if text.endswith("_")}
    dead = {key for key in labels - used - quoted if not key.startswith(tuple(begun))}
    assert dead == set()


@pytest.mark.parametrize(
    ("template", "values", "said"),
    [
        ("{n} {n?row|rows}", {"n": 1}, "1 row"),
        ("{n} {n?row|rows}", {"n": 0}, "0 rows"),
        ("{ranks?Rank|Ranks} {ranks} left", {"ranks": [3]}, "Rank 3 left"),
        ("{ranks?Rank|Ranks} {ranks} left", {"ranks": [0, 3]}, "Ranks 0, 3 left"),
        ("a[, {x:.1f} s][ ({y})]", {"x": 2.0, "y": None}, "a, 2.0 s"),
        ("a[, {x}][ ({y})]", {"x": [], "y": ""}, "a"),
        ("{x:.0%} {y:s} s", {"x": 0.256, "y": 123.4}, "26% 123 s"),
        ("{x:GiB}, {y:MB}/s", {"x": 3 << 29, "y": 2.5e6}, "1.5 GiB, 2.5 MB/s"),
        ("{x} [kept]", {"x": "[{y}]"}, "[{y}] kept"),
    ],
)
def test_templates(template: str, values: dict[str, Any], said: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("opensora_launch.report.wording.templates", lambda language: {"code": template})
    assert say(message("code", **values)) == said


def test_messages_hold_messages() -> None:
    cause = message("asleep", asleep_s=2.0)
    found = message(
        "slow_rank", ranks=[2], host="h", gpu_name=None, cause=cause, computed_s=3.0, others_s=1.0, seconds=1.5
    )
    assert say(found, "title") == "Rank 2 is slow: its process slept (h)"
    assert say(found).startswith("It computed for 3.00 s, the others for 1.00 s. Its process slept for 2.00 s")
    assert say(found).endswith(" The other ranks lost 1.50 s.")
    assert say(message("remedy", cause=cause)) == "Check its log for what it waited for outside collectives."
    assert say(found, "title", "ko") == "2번 랭크가 느립니다: 프로세스가 잠들어 있었음 (h)"
    assert say(message("what no table has")) == "what no table has"


@pytest.mark.parametrize("shard", Shard)
def test_placements_are_worded_as_the_planner_does(shard: Shard) -> None:
    """The plan's tables and the report say the same of a placement."""
    for offload, resident, rows, storage in product(Offload, (0, 1, 41), (0, 1), Storage):
        placement = Placement(shard, offload, resident if offload is Offload.host else 0, rows, storage)
        assert say(placement_message(placement)) == placement_text(placement)


@pytest.mark.browser
def test_the_page_words_messages_as_python_does(tmp_path: Path) -> None:
    """Every template of each language, with values of the kinds that it formats."""
    run = write_run(tmp_path / "run", a_plan(1), [plain_simulation(1).events()], done=["0000_0"])
    build_report(run)
    values: dict[str, Any] = {}
    cause = message("asleep", asleep_s=2.346)
    for template in templates("en").values():
        for name, kind, form in (found.groups() for found in PARAMETER.finditer(template)):
            plain = cause if form in ("title", "remedy", "short") else 1234.567 if form else f"<{name}>"
            values[name] = 1 if kind == "?" or values.get(name) == 1 else plain
    mixed = values | {"ranks": [3, 5], "share": 0.2566, "least_available_bytes": None, "in_host": None, "hosts": []}
    with browser(tmp_path) as page:
        for language, parameters in product(LANGUAGES, (values, mixed)):
            page.open(run / "report.html", language=language)
            made = {key: parameters | {"code": key} for key in templates(language)}
            told = page.run(f"Object.fromEntries(Object.entries({json.dumps(made)}).map(([k, m]) => [k, say(m)]))")
            assert told == {key: say(found, "", language) for key, found in made.items()}
