"""Keep values as they are written where YAML or Hydra would read a number out of them (see written_yaml)."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from antlr4 import CommonTokenStream, InputStream
from antlr4.Token import CommonToken
from hydra._internal.core_plugins.file_config_source import FileConfigSource
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.grammar.gen.OverrideLexer import OverrideLexer
from hydra.grammar.gen.OverrideParser import OverrideParser
from hydra.plugins.config_source import ConfigResult
from omegaconf import OmegaConf

from opensora_launch.request.catalogue import keys
from opensora_launch.request.override_checks import hydra_quoted
from opensora_launch.request.written_yaml import read_yaml

SCHEME = "text"
_NUMBERS = ("a whole number", "a number", "true or false")  # kinds of keys
_OF_NUMBERS = ("range", "interval", "int", "float", "bool", "sort")  # Hydra's functions
_SHOWN = {OverrideLexer.INT: int, OverrideLexer.FLOAT: float}


class TextSource(FileConfigSource):
    """A folder of YAML files, text:///path."""

    @staticmethod
    def scheme() -> str:
        return SCHEME

    def load_config(self, config_path: str) -> ConfigResult:
        file = Path(self.path) / self._normalize_file_name(config_path)
        values = read_yaml(file)
        config = OmegaConf.create({} if values is None else values)
        header = self._get_header_dict(file.read_text(encoding="utf-8"))
        return ConfigResult(self.provider, f"{SCHEME}://{self.path}", config, header)


def text_overrides(overrides: Sequence[str]) -> list[str]:
    """The same overrides, with values quoted where their keys may take texts, and with folders read by TextSource."""
    parser = OverridesParser.create()
    return [_text_override(text, parser) for text in overrides]


def _text_override(text: str, parser: OverridesParser) -> str:
    try:
        override = parser.parse_override(text)
    except HydraException:
        return text  # the checks that follow explain it
    if override.key_or_group == "hydra.searchpath" and isinstance(value := override.value(), list):
        return f"{override.get_key_element()}=[{','.join(hydra_quoted(_by_text(str(folder))) for folder in value)}]"
    if override.is_hydra_override():
        return text
    tree = OverrideParser(CommonTokenStream(OverrideLexer(InputStream(text)))).override()
    tokens = list(_more_than_shown(tree.value()))
    path = override.key_or_group
    if not tokens or any(key.path == path and key.kind.startswith(_NUMBERS) for key in keys()):
        return text
    for token in reversed(tokens):
        text = text[: token.start] + hydra_quoted(token.text) + text[token.stop + 1 :]
    return text


def _more_than_shown(node: Any) -> Iterator[CommonToken]:
    """The numbers and booleans below a node of a value that lose how they are written, also in lists and sweeps."""
    if isinstance(node, OverrideParser.PrimitiveContext):
        tokens = [child.symbol for child in node.getChildren() if child.symbol.type != OverrideLexer.WS]
        if len(tokens) == 1 and _loses(tokens[0]):
            yield tokens[0]
    elif not (isinstance(node, OverrideParser.FunctionContext) and node.getChild(0).getText() in _OF_NUMBERS):
        for child in node.getChildren() if node and node.getChildCount() else ():
            yield from _more_than_shown(child)


def _loses(token: CommonToken) -> bool:
    if token.type == OverrideLexer.BOOL:
        return True
    return token.type in _SHOWN and str(_SHOWN[token.type](token.text)) != token.text


def _by_text(folder: str) -> str:
    scheme, _, rest = folder.rpartition("://")
    return f"{SCHEME}://{rest}" if scheme in ("", "file") else folder
