"""The report's own sentences are in the page's list of translations, and the list has no others."""

import ast
import json
import re
from collections.abc import Iterator

import pytest

from tests.report.test_page import PAGE, ROOT

ENGLISH = re.compile(r"[a-z]{3,} [a-z]{2,} [a-z]{2,}")  # three words in a row
SAY = (
    "report/accounting", "report/advice", "report/document", "report/efficiency", "report/findings", "report/peers",
    "report/planned", "report/rates", "report/run_files", "cli/bench_report",
)  # fmt: skip
# Of report.json alone, and sentences that are put together of several strings.
NOT_SHOWN = {
    "from this run's measured parts; not tried",
    "the planner's predicted ratio, applied to the measured time; not tried",
    "no GPU told its energy or power",
    "no price was given: --usd-per-gpu-hour",
}
IN_PARTS = {
    " (the whole card)": "throttled 7 (the whole card)",
    "engines are compared: 7 7, 7 7": "engines are compared: native here, colossalai in the baseline",
    "had 7 memory errors that ECC could not correct": "GPU 7 had 7 memory errors that ECC could not correct",
    "setup and load are 7 s of 7 s for 7 video7": "setup and load are 7 s of 7 s for 7 videos",
    "7 on 7 did other work: 7": "7 on 7 did other work: 7: 7 here, 7 in the baseline",
}


def sentences() -> list[tuple[str, str]]:
    block = re.search(r"const SENTENCES = \[\n(.*?)^\];", (PAGE / "sentences.js").read_text(), re.S | re.M)
    assert block
    return [tuple(json.loads(line.rstrip(","))) for line in block[1].splitlines()]


def test_sentences_are_the_reports_own() -> None:
    """Each stands in the report's source, so a sentence that is changed there is missed here; none is said twice."""
    source = "".join(path.read_text() for path in (ROOT / "opensora_launch").rglob("*.py"))
    joined = re.sub(r'"\s*\n\s*f?"', "", source)
    for english, korean in sentences():
        assert sorted(re.findall(r"\{\d\}", english)) == sorted(re.findall(r"\{\d\}", korean)), english
        assert re.search("[가-힣]", korean), english
        longest = max(re.split(r"\{\d\}", english), key=len).strip(" ,:;().")
        words = [longest, longest.replace(" ", "_")]  # causes are written with underscores
        assert any(w in joined or w.removesuffix("s") in joined for w in words), english
    assert len({english for english, _ in sentences()}) == len(sentences())


def said_in(module: str) -> Iterator[str]:
    """Its strings of three words and more, with a 7 for what varies; no docstrings and no errors."""
    tree = ast.parse((ROOT / "opensora_launch" / f"{module}.py").read_text())
    skip = set[int]()
    for node in ast.walk(tree):
        if isinstance(node, ast.Raise | ast.Assert | ast.JoinedStr):
            skip |= {id(inner) for inner in ast.walk(node) if inner is not node}
        if isinstance(node, ast.Expr):  # a docstring
            skip.add(id(node.value))
    for node in ast.walk(tree):
        parts = node.values if isinstance(node, ast.JoinedStr) else [node]
        text = "".join(str(part.value) if isinstance(part, ast.Constant) else "7" for part in parts)
        if isinstance(node, ast.Constant | ast.JoinedStr) and id(node) not in skip and ENGLISH.search(text):
            yield text


@pytest.mark.parametrize("module", SAY)
def test_every_sentence_is_translated(module: str) -> None:
    """Read from the source, so that a new one is missed here too."""
    known = [re.compile(re.sub(r"\\\{\d\\\}", "(.+?)", re.escape(english)), re.S) for english, _ in sentences()]
    missing = {text for text in said_in(module) if not any(k.fullmatch(IN_PARTS.get(text, text)) for k in known)}
    assert missing <= NOT_SHOWN
