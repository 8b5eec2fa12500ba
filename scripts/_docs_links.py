"""A hook of the docs site: what to do with links that leave docs/, which GitHub shows and a site has not.

With REPOSITORY_URL in the environment they lead to the file in that repository, else only their text stays.
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
    """The page's text, with every link to a path outside docs/, or to a folder, replaced."""

    def replace(found: re.Match[str]) -> str:
        text, target, anchor = found[1], found[2], found[3] or ""
        path = posixpath.normpath(posixpath.join("docs", posixpath.dirname(page), target))
        if path.startswith("docs/") and not target.endswith("/"):
            return found[0]
        return f"[{text}]({repository.rstrip('/')}/blob/HEAD/{path}{anchor})" if repository else text

    return LINK.sub(replace, markdown)
