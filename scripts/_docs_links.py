"""A hook of the docs site for links to files outside docs/, which work on GitHub and would be dead in the site.

If REPOSITORY_URL is set in the environment, they lead to the file in that repository; otherwise only their text stays.
"""

import os
import posixpath
import re
from typing import Any

LINK = re.compile(r"(?<!!)\[((?:[^\[\]]|\[[^\]]*\])*)\]\((\.\.?/[^)\s#]+|[\w-]+/)(#[^)\s]*)?\)")


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Rewrite the links of one page. `page.file.src_uri` is its path below docs/."""
    return rewrite(markdown, page.file.src_uri, os.environ.get("REPOSITORY_URL", ""))


def rewrite(markdown: str, page: str, repository: str) -> str:
    """Return the page's text with every link to a folder or to a path outside docs/ replaced."""

    def replace(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
        if path.startswith("docs/") and not target.endswith("/"):
            return found[0]
        return f"[{text}]({repository.rstrip('/')}/blob/HEAD/{path}{anchor})" if repository else text

    return LINK.sub(replace, markdown)
