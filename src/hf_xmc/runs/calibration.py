"""How a recipe calibrates: on the held-out part, for the retriever that is then trained on every row."""

from __future__ import annotations

from hf_xmc.data.dataset import XMCDataset
from hf_xmc.encoders.encoder import XMCEncoder
from hf_xmc.memory import MemoryForm
from hf_xmc.retriever.calibration import FittedCalibration
from hf_xmc.retriever.retriever import Retriever
from hf_xmc.runs.record import RunRecord


def calibrate_held_out(
    encoder: XMCEncoder, development: XMCDataset, form: MemoryForm | None, record: RunRecord
) -> FittedCalibration | None:
    """Fit on held-out rows how far probabilities can be trusted; timed and noted.

    Args:
        encoder: Trained on ``development.train``, with the search form of the final retriever.
        development: From ``data.hold_out(..., answerable_only=True)``.
        form: How training rows vote, None where they do not.
        record: Gets a line about it.

    Returns:
        The ``calibration`` of the final retriever, its cross-fitted ``report`` among it; None, with a note why, where
        the held-out predictions tell nothing, for a long training must not end for want of a calibration.
    """
    with record.timed("fitting"):
        retriever = Retriever.build(encoder, development.labels["text"][:])
        if form is not None and form.row_weight > 0:
            retriever.remember(development.train["text"], development.to_csr("train"), form)
        texts, truth = development.test["text"][:], development.to_csr("test")
        try:
            report = retriever.calibrate(texts, truth, filters=development.filters["test"])
        except ValueError as error:
            record.notes.append(f"calibration: none, {error}")
            return None
    errors = ", ".join(f"top-{part.k} {part.error:.3f}" for part in report.parts)
    record.notes.append(f"calibration: fitted on {report.num_queries:,} held-out rows, expected error {errors}")
    return retriever.calibration
