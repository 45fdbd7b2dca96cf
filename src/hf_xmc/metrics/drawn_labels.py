"""Coverage and macro-F1 of many drawn test sets at once, by how often each draws each row."""

from __future__ import annotations

import numpy as np
import scipy.sparse as sp
from numpy.typing import NDArray

from hf_xmc.metrics.inputs import FloatArray
from hf_xmc.metrics.judged import Judged


class DrawnLabels:
    """What a label counts in a drawn test set is a sum over rows: a product with sparse matrices, built once.

    Only labels with a hit are counted one by one, as F1 of all others is 0.

    Args:
        judged: N rows with their hits; L labels, of which H have a hit in some row.
    """

    def __init__(self, judged: Judged) -> None:
        ids, hits, self.cutoffs = judged.ids, judged.hits, judged.cutoffs
        self.num_labels = judged.truth.shape[1]
        is_hit = np.zeros(self.num_labels + 1, dtype=bool)  # the last place is that of pads
        is_hit[ids[hits]] = True
        self.hit_labels = np.flatnonzero(is_hit)
        place = np.cumsum(is_hit, dtype=np.int32) - 1
        truth = judged.truth
        ones = np.ones(truth.nnz, dtype=np.int32)
        self.truth = sp.csr_array((ones, truth.indices, truth.indptr), shape=truth.shape)
        # Of the columns that each cut-off adds, (N, H).
        self.predicted: list[sp.csr_array] = []
        self.hits: list[sp.csr_array] = []
        start = 0
        for stop in self.cutoffs:
            band = ids[:, start:stop]
            for matrices, kept in ((self.predicted, is_hit[band]), (self.hits, hits[:, start:stop])):
                indptr = np.concatenate([[0], np.cumsum(kept.sum(axis=1))])
                indices, shape = place[band[kept]], (len(ids), len(self.hit_labels))
                matrices.append(sp.csr_array((np.ones(len(indices), np.int32), indices, indptr), shape=shape))
            start = stop

    def metrics(self, counts: NDArray[np.int32]) -> dict[str, FloatArray]:
        """Of S test sets, (S, num_cutoffs) each; ``counts`` (N, S) int32, how often each has each row."""
        in_truth = self.truth.T @ counts  # (L, S)
        num_present = np.maximum(np.count_nonzero(in_truth, axis=0), 1)  # a test set can be without positives
        denominator = in_truth[self.hit_labels]  # (H, S) tp + fn, then + tp + fp of each further column
        true_positives = np.zeros_like(denominator)
        coverage, macro_f1 = [], []
        for predicted, hits in zip(self.predicted, self.hits, strict=True):
            true_positives += hits.T @ counts
            denominator += predicted.T @ counts
            coverage.append(np.count_nonzero(true_positives, axis=0) / num_present)
            # Where nothing is drawn that has the label, 0 / 0 counts as 0.
            macro_f1.append((2 * true_positives / np.maximum(denominator, 1)).sum(axis=0) / self.num_labels)
        return {"coverage": np.stack(coverage, axis=1), "macro_f1": np.stack(macro_f1, axis=1)}
