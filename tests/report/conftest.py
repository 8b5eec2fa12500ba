"""What several tests of the report share."""

from collections.abc import Iterator

import pytest

from tests.report.browser import Page, browser


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Page]:
    """A browser in which no script of a page may fail."""
    with browser(tmp_path_factory.mktemp("browser")) as found:
        yield found
        assert found.errors == []
