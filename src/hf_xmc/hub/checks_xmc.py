"""The checks of what every door is asked: texts, label ids, options. One signature, one set of errors.

With numpy alone. This file travels inside every published repo, and the package runs it too.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterable, Mapping, Sequence
from numbers import Real
from typing import Any, NamedTuple, Protocol

import numpy as np

from .filters_xmc import as_list, is_integer
from .memory_xmc import Memory
from .ranker_xmc import Ranker
from .search_xmc import VectorIndex

DEFAULT_TOP_K = 5
# Characters of a text that are read: to split ten million into tokens takes ten seconds, and gigabytes.
MAX_CHARACTERS = 1_000_000


class Calibrated(Protocol):
    """What gives probabilities."""

    @property
    def memory(self) -> bool:
        """Whether they are of the votes of a memory."""

    def probabilities(self, scores: np.ndarray, context: np.ndarray) -> np.ndarray:
        """See :class:`Calibration`."""


class Parts(Protocol):
    """What answers are made of."""

    @property
    def labels(self) -> Sequence[str]:
        """L label texts in id order."""

    @property
    def index(self) -> VectorIndex:
        """Of the L labels; it knows which are removed."""

    @property
    def embedding(self) -> np.ndarray:
        """(L, De) float32, the labels' text half."""

    @property
    def classifier(self) -> np.ndarray | None:
        """(L, Dc) float32, or None."""

    @property
    def memory(self) -> Memory | None:
        """The training rows that vote."""

    @property
    def memory_texts(self) -> Sequence[str]:
        """Their texts."""

    @property
    def ranker(self) -> Ranker | None:
        """What orders the labels that they find."""

    @property
    def calibration(self) -> Calibrated | None:
        """What makes probabilities of scores, where there is no ranker."""


def calibrated(parts: Parts, memory: bool) -> Calibrated | None:
    """What gives probabilities to answers with the memory's votes, or without."""
    return parts.calibration if parts.calibration is not None and parts.calibration.memory == memory else None


class Request(NamedTuple):
    """What a call asks for, checked; see :func:`checked_request`."""

    top_k: int
    threshold: float | None
    min_precision: float | None
    tail: float
    candidates: np.ndarray | None
    memory: bool | None
    return_evidence: bool
    num_evidence: int


def checked_request(
    parts: Parts,
    top_k: int | None = None,
    *,
    threshold: float | None = None,
    min_precision: float | None = None,
    tail: float = 0.0,
    candidates: Iterable[int] | None = None,
    memory: bool | None = None,
    return_evidence: bool = False,
    num_evidence: int = 3,
) -> Request:
    """The options of every door that answers.

    Args:
        parts: What is asked.
        top_k: Labels of each text, at most the number of labels; None for 5, or all where there are fewer.
        threshold: The least score of a label that is kept; None for any.
        min_precision: In (0, 1], the share of all labels kept that is to be right. With a ranker a promise, kept by
            those of the first five labels that are likely enough, perhaps by none; with a calibration a wish, for the
            longest list of a text whose mean probability reaches it.
        tail: In [0, 1], from the likeliest labels first (0) towards rare ones; needs a ranker.
        candidates: Ids of the only labels to choose from; None for all.
        memory: True for the votes of training rows, False for the label search alone; None: the ranker, without one
            the votes, without a memory the search.
        return_evidence: Whether each label comes with the training rows and the label text behind it.
        num_evidence: Training rows shown for a label, those of the largest share.

    Raises:
        ValueError: Naming the option, with what came and what was expected.
    """
    num_labels = parts.index.num_alive
    if top_k is None:
        top_k = min(DEFAULT_TOP_K, num_labels)
    if not is_integer(top_k):
        raise ValueError(f"top_k must be an integer, got {top_k!r}")
    if not 1 <= top_k <= num_labels:
        raise ValueError(f"top_k must lie between 1 and the {num_labels} labels, got {top_k!r}")
    _check_numbers(threshold=threshold, min_precision=min_precision, tail=tail)
    _check_flags(memory=memory, return_evidence=return_evidence)
    if not is_integer(num_evidence) or num_evidence < 0:
        raise ValueError(f"num_evidence must be an integer of at least 0, got {num_evidence!r}")
    if parts.memory is None and (memory or (return_evidence and parts.ranker is None)):
        raise ValueError("this retriever has no memory; make one: remember(texts, truth)")
    votes = _votes(parts, memory)
    _check_ranked(parts, votes, tail, min_precision)
    chosen = None if candidates is None else parts.index.present(candidates, "candidates")
    if chosen is not None and not len(chosen):
        raise ValueError("candidates is empty: got none; give at least one label id, or None for all labels")
    asked = threshold, min_precision, float(tail), chosen, votes, bool(return_evidence), int(num_evidence)
    return Request(int(top_k), *asked)


def _votes(parts: Parts, memory: bool | None) -> bool | None:
    """Whether training rows vote; None where a ranker orders."""
    if memory is not None:
        return bool(memory)
    return None if parts.ranker is not None else parts.memory is not None


def _check_ranked(parts: Parts, votes: bool | None, tail: float, min_precision: float | None) -> None:
    """Refuse options that the asked way cannot answer."""
    if tail is None or not 0 <= tail <= 1:
        raise ValueError(f"tail must lie in [0, 1], got {tail!r}")
    if tail and votes is not None:
        raise ValueError("tail needs a ranker; make one: fit_ranker(texts, truth), and leave memory=None")
    if min_precision is None:
        return
    if not 0 < min_precision <= 1:
        raise ValueError(f"min_precision must lie in (0, 1], got {min_precision}")
    if votes is not None and calibrated(parts, votes) is None:
        raise ValueError(
            f"min_precision needs probabilities; make them: calibrate(texts, truth, memory={votes}), or "
            "fit_ranker(texts, truth)"
        )


def check_options(asked: Iterable[str]) -> None:
    """Refuse options that no door knows, such as a mistyped one."""
    unknown = sorted(set(asked) - set(Request._fields))
    if unknown:
        raise ValueError(f"unknown option {', '.join(unknown)}; a call takes batch_size, {', '.join(Request._fields)}")


def check_batch_size(batch_size: Any) -> None:
    """Refuse what is no number of texts to encode at once."""
    if not is_integer(batch_size) or batch_size < 1:
        raise ValueError(f"batch_size must be an integer of at least 1, got {batch_size!r}")


def _check_numbers(**numbers: Any) -> None:
    for name, value in numbers.items():
        if value is not None and (not isinstance(value, Real) or isinstance(value, bool) or value != value):
            raise ValueError(f"{name} must be a number, got {value!r}")


def _check_flags(**flags: Any) -> None:
    for name, flag in flags.items():
        if flag is not None and not isinstance(flag, bool | np.bool_):
            raise ValueError(f"{name} must be True or False, got {flag!r}")


def checked_source(texts: str | Iterable[str]) -> Iterable[str]:
    """What texts are read from: anything that gives one after the other, one text counting as a list of one.

    Raises:
        ValueError: For a table, a mapping, a set or what is no iterable.
    """
    if isinstance(texts, str):
        return [texts]
    if isinstance(texts, bytes | Mapping | set | frozenset) or hasattr(texts, "column_names") or _is_frame(texts):
        raise ValueError(f"texts must be a list of str, got {type(texts).__name__}; give one column of it")
    if not isinstance(texts, Iterable) or getattr(texts, "ndim", 1) != 1:
        raise ValueError(f"texts must be a str or a list of str, got {type(texts).__name__} {texts!r:.80}")
    return texts


def checked_texts(texts: str | Iterable[str], first: int = 0) -> list[str]:
    """A list of the texts, one text counting as a list of one.

    A text of more than a million characters is cut there, with a warning.

    Args:
        texts: A str, or a list, tuple, iterator, array, Arrow array, pandas Series or data set column of them.
        first: The place of the first one, for errors.

    Raises:
        ValueError: For a table or mapping, or naming the place of what is no str, or no valid Unicode.
    """
    listed = as_list(checked_source(texts))
    for place, text in enumerate(listed):
        if hasattr(text, "as_py"):  # one entry of an Arrow array
            text = listed[place] = text.as_py()
        if not isinstance(text, str):
            raise ValueError(f"texts must be str, got {type(text).__name__} at place {first + place}")
        try:
            text.encode("utf8")
        except UnicodeEncodeError as error:  # half a surrogate pair, from broken JSON or file names
            where = f"the text at place {first + place}"
            raise ValueError(f"{where} is no valid Unicode ({error.reason}); repair it") from error
        if len(text) > MAX_CHARACTERS:
            where = f"the text at place {first + place}"
            warnings.warn(f"{where} has {len(text):,} characters, of which {MAX_CHARACTERS:,} are read", stacklevel=3)
            listed[place] = text[:MAX_CHARACTERS]
    return listed


def _is_frame(values: Any) -> bool:
    return hasattr(values, "columns") and hasattr(values, "shape")
