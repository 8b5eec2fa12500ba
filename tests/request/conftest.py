"""The same empty working directory as for the verbs."""

from tests.cli.conftest import empty_folder as empty_folder
