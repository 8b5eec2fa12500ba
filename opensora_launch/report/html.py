"""report.html: one file without any other, which draws what report.json says. The drawing is `page/`'s."""

import json
from collections.abc import Mapping
from importlib import resources
from typing import Any

PARTS_OF_PAGE = ("page.css", "text.js", "sentences.js", "draw.js", "charts.js", "timeline.js", "page.js")


def page(data: Mapping[str, Any]) -> str:
    """The page of a run or a sweep. `data` has `kind` ("run" or "sweep"), `title`, and what page.js reads."""
    folder = resources.files("opensora_launch.report") / "page"
    style, *scripts = ((folder / name).read_text(encoding="utf-8") for name in PARTS_OF_PAGE)
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":"))
    safe = text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029")
    return (
        (folder / "page.html")
        .read_text(encoding="utf-8")
        .replace("{{title}}", _escaped(str(data["title"])))
        .replace("{{style}}", style)
        .replace("{{script}}", "\n".join(scripts))
        .replace("{{data}}", safe)
    )


def _escaped(text: str) -> str:
    return text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;").replace('"', "&quot;")
