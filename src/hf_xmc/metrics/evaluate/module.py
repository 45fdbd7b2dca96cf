"""What the evaluate modules share: their inputs, and the call of ``xmc_metrics`` behind each of them."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, ClassVar

import datasets
import evaluate
import numpy as np

from hf_xmc.metrics.functional import inverse_propensities as compute_inverse_propensities
from hf_xmc.metrics.functional import xmc_metrics
from hf_xmc.metrics.inputs import as_ids, read_truth

INPUTS = """
Args:
    predictions: one list of label ids per row, best first, distinct; ragged, or padded with -1.
    references: one list of label ids per row, may be empty.
    k: cut-offs, such as (1, 3, 5).
    inverse_propensities: one number per label, or instead of it:
    train_references, a, b: the label ids of the train rows and the two constants of the data set.
    num_labels: how many labels there are. Without it, and without inverse propensities, the largest id plus one.
    skip_empty: recall is the mean over the rows with a reference.
    skip_absent: macro-F1 is the mean over the labels with a reference.
Returns:
    a dict of `metric@k`, in [0, 1].
"""

CITATION = """
@inproceedings{jain2016propensity,
  title = {Extreme Multi-Label Loss Functions for Recommendation, Tagging, Ranking and Other Missing
           Label Applications},
  author = {Jain, Himanshu and Prabhu, Yashoteja and Varma, Manik},
  booktitle = {KDD},
  year = {2016}
}
"""


class XMCModule(evaluate.Metric):
    """An evaluate module that returns those of the metrics that ``metrics`` names."""

    metrics: ClassVar[tuple[str, ...]] = ()

    def _info(self) -> evaluate.MetricInfo:
        ids = datasets.List(datasets.Value("int64"))
        return evaluate.MetricInfo(
            description=type(self).__doc__,
            citation=CITATION,
            inputs_description=INPUTS,
            features=datasets.Features({"predictions": ids, "references": ids}),
        )

    def add_batch(self, *, predictions: Any = None, references: Any = None, **others: Any) -> None:
        """Keep rows, which may also be an array of predictions and a sparse matrix of references.

        Raises:
            ValueError: For what :func:`~hf_xmc.metrics.xmc_metrics` would refuse, or unequally many rows.
        """
        ids, truth = as_ids(predictions), read_truth(references)
        if len(ids) != truth.shape[0]:
            raise ValueError(
                f"got {len(ids)} rows of predictions and {truth.shape[0]} of references; expected as many"
            )
        lists = [row.tolist() for row in np.split(truth.indices, truth.indptr[1:-1])] if len(ids) else []
        super().add_batch(predictions=ids.tolist(), references=lists, **others)

    def add(self, *, prediction: Any = None, reference: Any = None, **others: Any) -> None:
        """Keep one row; see :meth:`add_batch`."""
        self.add_batch(predictions=[prediction], references=[reference], **others)

    def _compute(
        self,
        predictions: Sequence[Sequence[int]],
        references: Sequence[Sequence[int]],
        k: int | Iterable[int] = (1, 3, 5),
        inverse_propensities: Sequence[float] | None = None,
        train_references: Sequence[Sequence[int]] | None = None,
        a: float | None = None,
        b: float | None = None,
        num_labels: int | None = None,
        skip_empty: bool = False,
        skip_absent: bool = False,
    ) -> dict[str, float]:
        weights: Any = inverse_propensities
        if train_references is not None:
            if weights is not None or a is None or b is None:
                raise ValueError(
                    f"train_references came with a={a}, b={b}; expected both, and no inverse_propensities"
                )
            weights = compute_inverse_propensities(train_references, a, b, num_labels=num_labels)
        if weights is None and set(self.metrics) <= {"psp", "psndcg"}:
            raise ValueError(
                "inverse propensities are missing; pass inverse_propensities, or train_references with a, b"
            )
        values = xmc_metrics(
            predictions, references, k, weights, skip_empty=skip_empty, skip_absent=skip_absent, num_labels=num_labels
        )
        return {key: value for key, value in values.items() if key.split("@")[0] in self.metrics}
