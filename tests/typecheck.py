"""The checker of annotations while tests run: as mypy does, it takes a whole number where a float is asked for."""

from beartype import BeartypeConf, beartype

check = beartype(conf=BeartypeConf(is_pep484_tower=True))
