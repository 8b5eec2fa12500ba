"""Divide things as evenly as whole numbers allow: tokens, heads, rows, channels."""

from itertools import accumulate, pairwise, starmap


def share_sizes(total: int, ranks: int) -> tuple[int, ...]:
    """Return the sizes of `ranks` consecutive shares of `total` things; the first shares are the larger ones."""
    base, extra = divmod(total, ranks)
    return tuple(base + (index < extra) for index in range(ranks))


def share_slices(total: int, ranks: int) -> tuple[slice, ...]:
    """Return those shares as slices."""
    return tuple(starmap(slice, pairwise(accumulate(share_sizes(total, ranks), initial=0))))


def chunk_counts(rows: int, tokens: int, at_once: int) -> tuple[int, int]:
    """Return into how many parts a block divides its rows, and the tokens of each: `model/block_parts.py`.

    A chunk has at most `at_once` tokens, and is whole rows or a part of one row.
    """
    whole_rows = max(1, at_once // tokens)
    return -(-rows // whole_rows), -(-tokens // at_once)
