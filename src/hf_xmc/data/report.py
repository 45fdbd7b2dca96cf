"""What a data set is like, in numbers: arrays in, a record out that prints as a table, as JSON and as one PNG."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import scipy.sparse as sp

from hf_xmc.data.catalog import Propensity
from hf_xmc.data.splitting import normalized_texts

# Words that are compared with the first one of a label at once.
_PLACES_AT_ONCE = 1 << 22


@dataclass(frozen=True, eq=False)
class DataReport:
    """The figures of one data set.

    Attributes:
        name: The data set's.
        figures: Name -> number, in the order they are printed in; names that end in ``_share`` are in [0, 1].
        label_frequencies: int64 (L,) train rows of each label.
        labels_per_point: int64 (max + 1,) number of train rows with 0, 1, 2, ... labels.
    """

    name: str
    figures: dict[str, int | float]
    label_frequencies: np.ndarray
    labels_per_point: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """The name and the figures, for JSON."""
        return {"name": self.name, **self.figures}

    def to_json(self, path: str | Path | None = None) -> str:
        """The name and the figures as JSON text, also written to ``path`` if given."""
        text = json.dumps(self.to_dict(), indent=2)
        if path is not None:
            Path(path).expanduser().write_text(text + "\n")
        return text

    def __str__(self) -> str:
        """A Markdown table."""
        rows = [f"| {name.replace('_', ' ')} | {_printed(value)} |" for name, value in self.figures.items()]
        return "\n".join([f"| {self.name} | |", "| --- | --- |", *rows])

    def save_png(self, path: str | Path) -> None:
        """Draw label frequency by rank on log axes, and the labels per point."""
        try:
            from matplotlib.figure import Figure
        except ImportError as error:
            raise ImportError("matplotlib is required: pip install hf_xmc[plots]") from error
        figure = Figure(figsize=(10, 4), layout="constrained")
        tail, points = figure.subplots(1, 2)
        frequencies = np.sort(self.label_frequencies[self.label_frequencies > 0])[::-1]
        tail.loglog(np.arange(1, len(frequencies) + 1), frequencies, color="tab:blue")
        tail.set(title="Label frequency", xlabel="rank of the label", ylabel="train rows with the label")
        points.bar(np.arange(len(self.labels_per_point)), self.labels_per_point, color="tab:orange")
        points.set(title="Labels per point", xlabel="labels of a train row", ylabel="train rows", yscale="log")
        figure.suptitle(self.name)
        figure.savefig(Path(path).expanduser(), dpi=120)


def measure(
    *,
    name: str,
    propensity: Propensity,
    texts: dict[str, pa.Array],
    label_texts: pa.Array,
    truth: dict[str, sp.csr_matrix],
    filters: dict[str, np.ndarray],
) -> DataReport:
    """Measure a data set.

    A label text stands verbatim in a query if its words follow one another there, whatever their case and the
    punctuation. Label texts that differ in case and punctuation alone are near-duplicates, and count once among the
    distinct ones.

    Args:
        name: The data set's.
        propensity: Its constants A and B.
        texts: "train" and "test" -> (N,) strings.
        label_texts: (L,) strings.
        truth: "train" and "test" -> CSR (N, L).
        filters: "train" and "test" -> int64 (n, 2) pairs.
    """
    num_labels = len(label_texts)
    # Of one type, and with room for what is made of them.
    texts, label_texts = {split: _large(part) for split, part in texts.items()}, _large(label_texts)
    frequencies = np.bincount(truth["train"].indices, minlength=num_labels)  # (L,)
    in_test = np.bincount(truth["test"].indices, minlength=num_labels) > 0  # (L,)
    normalized_labels = normalized_texts(label_texts)
    figures: dict[str, int | float] = {"num_train": len(texts["train"]), "num_test": len(texts["test"])}
    figures |= {
        "num_labels": num_labels,
        "train_points_per_label": truth["train"].nnz / max(num_labels, 1),
        "max_label_frequency": int(frequencies.max(initial=0)),
        "labels_without_train_point_share": _mean(frequencies == 0),
        "labels_with_1_train_point_share": _mean(frequencies == 1),
        "labels_with_at_most_5_train_points_share": _mean(frequencies <= 5),
        "zero_shot_labels": int((in_test & (frequencies == 0)).sum()),
        "words_per_label": _words(label_texts),
        "empty_label_texts": _count_empty(label_texts),
        "distinct_label_texts": pc.count_distinct(normalized_labels).as_py(),
        "near_duplicate_label_texts": _near_duplicates(label_texts, normalized_labels),
    }
    for split in ("train", "test"):
        labels_per_point = np.diff(truth[split].indptr)
        figures |= {
            f"{split}_pairs": truth[split].nnz,
            f"labels_per_{split}_point": _mean(labels_per_point),
            f"max_labels_per_{split}_point": int(labels_per_point.max(initial=0)),
            f"{split}_points_without_label": int((labels_per_point == 0).sum()),
            f"{split}_filter_pairs": len(filters[split]),
            f"max_filter_pairs_per_{split}_point": int(np.bincount(filters[split][:, 0]).max(initial=0)),
            f"words_per_{split}_text": _words(texts[split]),
            f"empty_{split}_texts": _count_empty(texts[split]),
            f"repeated_{split}_texts": len(texts[split]) - pc.count_distinct(texts[split]).as_py(),
        }
        verbatim = _verbatim_shares(normalized_texts(texts[split]), normalized_labels, truth[split])
        for what, share in zip(("pairs", "points_any", "points_all"), verbatim, strict=True):
            figures[f"label_in_{split}_text_{what}_share"] = share
    figures["test_texts_in_train"] = pc.sum(pc.is_in(texts["test"], value_set=texts["train"])).as_py() or 0
    figures |= {"propensity_a": propensity.a, "propensity_b": propensity.b}
    return DataReport(name, figures, frequencies, np.bincount(np.diff(truth["train"].indptr)))


def _large(texts: pa.Array) -> pa.Array:
    return texts.cast(pa.large_string())


def _printed(value: int | float) -> str:
    return f"{value:,}" if isinstance(value, int) else f"{value:.4g}"


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else 0.0


def _words(texts: pa.Array) -> float:
    return _mean(pc.count_substring_regex(texts, r"[^\s\x{85}\p{Z}]+").to_numpy(zero_copy_only=False))


def _count_empty(texts: pa.Array) -> int:
    return pc.sum(pc.equal(pc.utf8_trim_whitespace(texts), "")).as_py() or 0


def _near_duplicates(texts: pa.Array, normalized: pa.Array) -> int:
    """Distinct texts that share their normalized form with another one."""
    forms = pa.table({"text": texts, "form": normalized}).group_by(["text", "form"]).aggregate([])
    counts = forms.group_by("form").aggregate([("text", "count")]).column("text_count").to_numpy()
    return int(counts[counts > 1].sum())


def _verbatim_shares(texts: pa.Array, label_texts: pa.Array, truth: sp.csr_matrix) -> tuple[float, float, float]:
    """Shares of the pairs, of the rows with any such pair, and of the rows with labels and such pairs only."""
    if not truth.nnz:
        return 0.0, 0.0, 0.0
    hits = _verbatim(texts, label_texts, truth)
    starts, lengths = truth.indptr[:-1], np.diff(truth.indptr)
    given = lengths > 0
    counts = np.add.reduceat(hits, starts[given], dtype=np.int64)
    num_rows = len(lengths)
    return float(hits.mean()), float((counts > 0).sum() / num_rows), float((counts == lengths[given]).sum() / num_rows)


def _verbatim(texts: pa.Array, label_texts: pa.Array, truth: sp.csr_matrix) -> np.ndarray:
    """(nnz,) bool: whether the words of the label follow one another in the text; of no words they never do."""
    label_words, label_bounds = _split(label_texts)
    encoded = label_words.dictionary_encode()
    label_words = encoded.indices.to_numpy(zero_copy_only=False)  # (W,)
    degrees = np.diff(truth.indptr).astype(np.int64)  # (N,)
    spaces = pc.count_substring(texts, " ").to_numpy(zero_copy_only=False)
    work = np.cumsum(degrees * (1 + spaces))  # places to look at, up to each row
    hits, first = np.zeros(truth.nnz, bool), 0
    while first < len(degrees):
        done = work[first - 1] if first else 0
        last = max(first + 1, int(np.searchsorted(work, done + _PLACES_AT_ONCE)))
        words, bounds = _split(texts[first:last])
        ids = pc.fill_null(pc.index_in(words, value_set=encoded.dictionary), -1).to_numpy(zero_copy_only=False)
        part = slice(truth.indptr[first], truth.indptr[last])
        rows = np.repeat(np.arange(last - first), degrees[first:last])  # (n,)
        labels = truth.indices[part]
        _mark(
            hits[part],
            ids,
            bounds[rows],
            bounds[rows + 1],
            label_words,
            label_bounds[labels],
            label_bounds[labels + 1],
        )
        first = last
    return hits


def _split(texts: pa.Array) -> tuple[pa.Array, np.ndarray]:
    """The words of all texts and, int64 (n + 1,), where those of each begin; of an empty text there are none."""
    words = pc.split_pattern(texts, " ")
    lengths = pc.list_value_length(words).to_numpy(zero_copy_only=False) * (pc.binary_length(texts).to_numpy() > 0)
    flat = words.flatten()
    return flat.filter(pc.not_equal(flat, "")), np.concatenate([[0], np.cumsum(lengths)])


def _mark(
    hits: np.ndarray,
    words: np.ndarray,
    starts: np.ndarray,
    stops: np.ndarray,
    label_words: np.ndarray,
    label_starts: np.ndarray,
    label_stops: np.ndarray,
) -> None:
    """Set the hits (n,) of pairs of ``words[start:stop]`` and ``label_words[start:stop]``, (n,) starts and stops."""
    lengths = label_stops - label_starts
    places = np.where(lengths > 0, np.maximum(stops - starts - lengths + 1, 0), 0)  # a label can begin at
    pairs = np.repeat(np.arange(len(hits)), places)
    at = np.arange(len(pairs)) - np.repeat(np.cumsum(places) - places - starts, places)
    for offset in range(int(lengths.max(initial=0))):
        more = lengths[pairs] > offset
        hits[pairs[~more]] = True
        pairs, at = pairs[more], at[more]
        same = words[at + offset] == label_words[label_starts[pairs] + offset]
        pairs, at = pairs[same], at[same]
    hits[pairs] = True
