"""What the documents point to is there."""

import re
import sys
from collections import Counter
from pathlib import Path
from urllib.parse import unquote

import pytest
import yaml

from opensora_launch import __version__
from opensora_launch.request.catalogue import Group, groups

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "scripts"))

from _docs_links import rewrite

ROOT = Path(__file__).parent.parent
SITE = sorted((ROOT / "docs").rglob("*.md"))
PAGES = sorted([*ROOT.glob("*.md"), *SITE, *(ROOT / "examples").rglob("*.md"), *(ROOT / ".github").rglob("*.md")])
THEIRS = {"scripts/diffusion/inference.py"}  # Open-Sora's own script, which docs/migrating.md speaks of
MADE = ("runs/2", "ckpts/", "site/")  # by commands

FENCE = re.compile(r"^(```|~~~).*?^\1", re.MULTILINE | re.DOTALL)
LINK = re.compile(
    r"\]\(<?([^)\s>]+)>?(?:\s+\"[^\"]*\")?\)|(?:src|href)=\"([^\"]+)\"|^\[[^\]]+\]:\s+(\S+)", re.MULTILINE
)
HEADING = re.compile(r"^#{1,6}\s+(.+?)\s*#*$", re.MULTILINE)
SCRIPT = re.compile(r"(?<![\w./-])scripts/[\w./-]*\w")


def links(text: str) -> list[str]:
    prose = re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))
    return ["".join(groups) for groups in LINK.findall(prose)]


def anchors(text: str) -> set[str]:
    """The names that GitHub gives to headings: lower case, no punctuation, blanks as hyphens, repeats numbered."""
    seen: Counter[str] = Counter()
    names = set(re.findall(r"<a (?:id|name)=\"([^\"]+)\"", text))
    for heading in HEADING.findall(FENCE.sub("", text)):
        plain = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        slug = re.sub(r"[^\w\- ]", "", plain.lower()).replace(" ", "-")
        names.add(f"{slug}-{seen[slug]}" if seen[slug] else slug)
        seen[slug] += 1
    return names


def dead_links(page: Path, text: str) -> list[str]:
    dead = []
    for link in links(text):
        if re.match(r"[a-z][a-z0-9+.-]*:", link):
            continue  # the web is not checked: a test must not depend on it
        name, _, anchor = unquote(link).partition("#")
        target = (page.parent / name).resolve() if name else page
        inside = target == page or (target.is_relative_to(ROOT) and target.exists())
        if not inside or (anchor and anchor not in anchors(text if target == page else target.read_text())):
            dead.append(link)
    return dead


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_links_lead_somewhere(page: Path) -> None:
    assert dead_links(page, page.read_text()) == []


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_named_scripts_exist(page: Path) -> None:
    named = set(SCRIPT.findall(page.read_text())) - THEIRS
    assert sorted(name for name in named if not (ROOT / name).exists()) == []


def test_dead_links_are_seen() -> None:
    text = """# A title: `code`, and more
[1](#a-title-code-and-more) [2](LICENSE) [3](tests/test_docs.py "with a title") `[4](not-a-link)` [web](https://a.b/c)
[dead](#a-title) [dead](no-such-file.md) <img src="no-such.png"> [dead](../outside.md)
[dead](CHANGELOG.md#no-such-heading)
```
[5](in-code)
```
"""
    expected = ["#a-title", "no-such-file.md", "no-such.png", "../outside.md", "CHANGELOG.md#no-such-heading"]
    assert dead_links(ROOT / "README.md", text) == expected
    assert SCRIPT.findall("`scripts/run --prompt x`, see ../scripts/no and scripts/a.py.") == [
        "scripts/run",
        "scripts/a.py",
    ]


@pytest.mark.parametrize("page", ["CONTRIBUTING.md", ".github/pull_request_template.md", "docs/faq.md"])
def test_named_files_exist(page: str) -> None:
    """A path in backticks, below the package too; capital letters in it stand for a name."""
    named = set(re.findall(r"`([a-z_.]+/(?:[\w.-]+/)*[\w.-]*)`", (ROOT / page).read_text()))
    folders = (ROOT, ROOT / "opensora_launch")
    missing = {name for name in named if not any((folder / name).exists() for folder in folders)}
    assert {name for name in missing if not re.search(r"[A-Z]{4}", name) and not name.startswith(MADE)} == set()


@pytest.mark.parametrize("group", [g for g in groups() if g.name != "hardware"], ids=lambda g: g.name)
def test_every_choice_of_a_group_is_in_its_row(group: Group) -> None:
    """Of hardware only the group is: `--help` and the folder list its cards."""
    (row,) = [
        line for line in (ROOT / "docs/cli.md").read_text().splitlines() if line.startswith(f"| `{group.name}` |")
    ]
    row = row.replace("`cpu1` to `cpu8`", " ".join(f"`cpu{n}`" for n in range(1, 9)))
    assert [choice.name for choice in group.choices if f"`{choice.name}`" not in row] == []


def test_the_site_has_every_page_once() -> None:
    """scripts/docs checks this too, and every link, but needs MkDocs."""
    nav = (ROOT / "mkdocs.yml").read_text().partition("\nnav:\n")[2]
    assert sorted(re.findall(r": (\S+\.md)$", nav, re.MULTILINE)) == [str(p.relative_to(ROOT / "docs")) for p in SITE]


def test_links_out_of_the_site_lead_to_the_repository_or_are_text() -> None:
    page = "[a](plan.md) [b](../tests/x.py) [`c`](../tests/README.md#why) [d](decisions/) ![e](../f.png) [g](#h)"
    rewritten = page.replace("[b](../tests/x.py) [`c`](../tests/README.md#why) [d](decisions/)", "b `c` d")
    assert rewrite(page, "verify.md", "") == rewritten
    assert rewrite("[b](../tests/x.py)", "verify.md", "https://a.b/c/d") == "[b](https://a.b/c/d/blob/HEAD/tests/x.py)"
    assert rewrite("[b](../plan.md) [c](../../x)", "decisions/1.md", "") == "[b](../plan.md) c"


def test_the_citation_has_this_version() -> None:
    assert yaml.safe_load((ROOT / "CITATION.cff").read_text())["version"] == __version__
