"""Which rows leave the training split, and by which labels those are judged."""

from __future__ import annotations

import datasets
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

from hf_xmc.data.columns import column_of, list_lengths, with_labels

_VOLUME_WORDS = (
    "volumes?|vols?|parts?|pts?|numbers?|nos?|nr|issues?|books?|bks?|chapters?|chaps?|series|sections?|editions?|edn?|editor"
    "|years?|pages?|pp|st|nd|rd|th|first|second|third|fourth|fifth|sixth|seventh|eighth|ninth|tenth"
    "|one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve"
)
_MONTH_WORDS = (
    "january|february|march|april|may|june|july|august|september|october|november|december"
    "|jan|feb|mar|apr|jun|jul|aug|sept?|oct|nov|dec"
)
_ROMAN_NUMBERS = "x{1,3}(?:ix|iv|v?i{0,3})|ix|iv|vi{0,3}|i{1,3}"
_NOT_LETTERS = r"(?:\bof \p{N}+|[^\p{L}\p{M}])+"  # "Volume 1 (of 9)"
_SERIES_WORDS = rf"\b(?:{_VOLUME_WORDS}|{_MONTH_WORDS}|{_ROMAN_NUMBERS})\b"


def title_keys(texts: pa.Array) -> pa.Array:
    """The part of each text that all volumes of one work share.

    Lower case; punctuation, numbers (Roman ones too), volume words and month words are taken out. A text that holds
    nothing else keeps its lower-case self as the key, so that "1984" and "2001" stay apart.

    Args:
        texts: (N,) strings.

    Returns:
        (N,) strings.
    """
    lower = pc.utf8_lower(texts)
    words = pc.replace_substring_regex(lower, _NOT_LETTERS, " ")
    rest = _single_spaced(pc.replace_substring_regex(words, _SERIES_WORDS, " "))
    return pc.if_else(pc.equal(rest, ""), lower, rest)


def normalized_texts(texts: pa.Array) -> pa.Array:
    """(N,) strings in lower case whose runs of anything but letters and digits are one space."""
    return _single_spaced(pc.replace_substring_regex(pc.utf8_lower(texts), r"[^\p{L}\p{M}\p{N}]+", " "))


def _single_spaced(texts: pa.Array) -> pa.Array:
    return pc.utf8_trim_whitespace(pc.replace_substring_regex(texts, " +", " "))


def held_out_rows(keys: pa.Array, fraction: float, seed: int, truth: sp.csr_matrix | None = None) -> np.ndarray:
    """A random set of whole groups that holds about ``fraction`` of the rows.

    Groups larger than the whole held-out part never enter it; the others are taken in random order as long as they
    fit. With a truth, groups give way where a row of theirs would keep no label that train still has.

    Args:
        keys: (N,) group of each row, any hashable Arrow type.
        fraction: Share of the rows, in (0, 1).
        seed: Of numpy's default generator; the same keys, fraction and seed give the same rows.
        truth: (N, L), None to take groups whatever their labels.

    Returns:
        (N,) bool, True where held out.

    Raises:
        ValueError: If either side would be empty.
    """
    if not 0 < fraction < 1:
        raise ValueError(f"fraction is {fraction}; expected a share of the rows between 0 and 1, say 0.1")
    groups = keys.dictionary_encode().indices.to_numpy(zero_copy_only=False)  # (N,)
    sizes = np.bincount(groups)
    target = round(fraction * len(groups))
    order = np.random.default_rng(seed).permutation(len(sizes))
    order = order[sizes[order] <= target]
    held_out = _rows_of(groups, order[np.cumsum(sizes[order]) <= target], len(sizes))
    # A group that leaves takes labels away from the others, so that they are looked at again.
    while truth is not None and held_out.any():
        orphans = np.unique(groups[held_out & ~_has_label(truth, label_seen(truth, ~held_out))])
        if not len(orphans):
            break
        order = order[~np.isin(order, orphans)]
        held_out = _rows_of(groups, order[np.cumsum(sizes[order]) <= target], len(sizes))
    if not held_out.any() or held_out.all():
        raise ValueError(
            f"A held-out part of {fraction} of {len(groups)} rows in {len(sizes)} groups leaves one side empty; "
            "choose another fraction, or by='row'"
        )
    return held_out


def label_seen(truth: sp.csr_matrix, rows: np.ndarray) -> np.ndarray:
    """(L,) bool: whether a label stands in any of the rows; truth (N, L), rows (N,) bool."""
    return truth.T @ rows.astype(truth.dtype) > 0


def answerable(rows: datasets.Dataset, filtered: np.ndarray, seen: np.ndarray) -> tuple[datasets.Dataset, np.ndarray]:
    """The rows judged by labels that can be answered: seen in training and not filtered for the row.

    Args:
        rows: The n rows, with ``label_ids`` and perhaps ``label_weights``.
        filtered: int64 (m, 2) rows of (row, label id).
        seen: (L,) bool.

    Returns:
        Those rows that keep a label, in their old order, and their filter pairs.

    Raises:
        ValueError: If none does.
    """
    lists = column_of(rows, "label_ids")
    row_of = np.repeat(np.arange(len(rows)), list_lengths(lists))  # (nnz,)
    ids = lists.flatten().to_numpy(zero_copy_only=False).astype(np.int64)
    kept = seen[ids] & ~np.isin(row_of * len(seen) + ids, filtered @ [len(seen), 1])
    left = np.bincount(row_of[kept], minlength=len(rows)) > 0  # (n,)
    if not left.any():
        raise ValueError(
            f"None of the {len(rows)} held-out rows has a label that keeps a training row and is not filtered; hold "
            "out another fraction, or without answerable_only"
        )
    filtered = filtered[left[filtered[:, 0]]]
    place = np.cumsum(left) - 1
    return (
        with_labels(rows, kept).select(np.flatnonzero(left)),
        np.stack([place[filtered[:, 0]], filtered[:, 1]], axis=1),
    )


def _rows_of(groups: np.ndarray, chosen: np.ndarray, num_groups: int) -> np.ndarray:
    """(N,) bool: whether the group (N,) of a row is among the chosen."""
    is_chosen = np.zeros(num_groups, dtype=bool)
    is_chosen[chosen] = True
    return is_chosen[groups]


def _has_label(truth: sp.csr_matrix, labels: np.ndarray) -> np.ndarray:
    """(N,) bool: whether a row has any of the labels (L,) bool."""
    return np.asarray(truth @ labels).ravel() > 0
