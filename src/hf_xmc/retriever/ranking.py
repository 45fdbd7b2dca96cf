"""Ranking: what a retriever answers, as arrays; and the checks of what it is asked."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from hf_xmc.index.label_index import MISSING_ID, MISSING_SCORE


@dataclass(frozen=True)
class Ranking:
    """The best labels of N queries.

    Attributes:
        ids: (N, K) int64, padded with -1.
        scores: (N, K) float32, descending, equal ones by ascending id, padded with -inf.
        probabilities: (N, K) float64 in [0, 1] that the label is right, or None where nothing was calibrated.
    """

    ids: np.ndarray
    scores: np.ndarray
    probabilities: np.ndarray | None = None

    def keep(self, kept: np.ndarray) -> Ranking:
        """The same without the places where ``kept`` (N, K) is False, which must be the last of a row."""
        probabilities = None if self.probabilities is None else np.where(kept, self.probabilities, 0.0)
        return Ranking(
            np.where(kept, self.ids, MISSING_ID),
            np.where(kept, self.scores, np.float32(MISSING_SCORE)),
            probabilities,
        )


def checked_texts(texts: str | Sequence[str]) -> list[str]:
    """A list of the texts, one text counting as a list of one.

    Raises:
        ValueError: naming the place of a text that is no str, or that no file can hold.
    """
    texts = [texts] if isinstance(texts, str) else list(texts)
    for place, text in enumerate(texts):
        if not isinstance(text, str):
            raise ValueError(f"texts must be str, got {type(text).__name__} at place {place}")
        try:
            text.encode("utf8")
        except UnicodeEncodeError as error:  # half a surrogate pair, from broken JSON or file names
            raise ValueError(f"the text at place {place} is no valid Unicode ({error.reason}); repair it") from error
    return texts


def as_ids(ids: Iterable[int]) -> np.ndarray:
    """(n,) int64.

    Raises:
        ValueError: for anything but integers.
    """
    ids = np.asarray(ids if isinstance(ids, np.ndarray) else list(ids))
    if ids.size and ids.dtype.kind not in "iu":
        raise ValueError(f"label ids must be integers, got {ids.dtype}")
    return ids.astype(np.int64).reshape(-1)
