"""What probabilities are worth on a test split: expected calibration error, Brier scores, precision against wishes.

    OMP_NUM_THREADS=1 python -m benchmarks.quality.calibration [--data_dir DIR] [--models DIR] [--pictures DIR]

A retriever that is trained without a held-out part of train is calibrated there, by labels alone and with a memory
whose form is fitted there too. The test split is looked at once. As recipes do after training again on every row,
the calibration is then carried over to that second retriever, which has no held-out rows of its own.

``--models`` keeps the two retrievers and takes those that lie there in place of training (minutes).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from scipy.sparse import csr_matrix

import hf_xmc
from benchmarks import TITLES
from benchmarks.quality import preset
from benchmarks.table import Table, add_output, write
from hf_xmc.memory import MemoryForm
from hf_xmc.metrics.plots import plot_reliability
from hf_xmc.metrics.reliability import CalibrationReport
from hf_xmc.retriever.calibration import FittedCalibration
from hf_xmc.runs.memory import choose_memory

WISHES = (0.3, 0.5, 0.7, 0.9)


def calibrated(
    retriever: hf_xmc.Retriever, development: hf_xmc.XMCDataset, form: MemoryForm | None
) -> FittedCalibration:
    """Calibrate on the held-out rows, with a memory where there is a form."""
    retriever.memory = None
    if form is not None:
        retriever.remember(development.train["text"], development.to_csr("train"), form)
    print(retriever.calibrate(development.test["text"], development.to_csr("test")))
    assert retriever.calibration is not None
    return retriever.calibration


def judge(
    name: str, retriever: hf_xmc.Retriever, texts: list[str], truth: csr_matrix, tables: tuple[Table, Table]
) -> CalibrationReport:
    """Two lines for what probabilities are worth on the rows of ``truth`` (N, L), and one for each wish."""
    report = retriever.reliability(texts, truth)
    fitted, retriever.calibration = retriever.calibration, None
    plain = retriever.rank(texts, 5)
    retriever.calibration = fitted
    same = np.array_equal(plain.ids, retriever.rank(texts, 5).ids)
    for part in report.parts:
        briers = (part.brier, part.brier_raw, part.brier_base)
        tables[0].add(name, f"top-{part.k}", part.error, *briers, "as before" if same else "changed")
    for wish in WISHES:
        ids = retriever.rank(texts, 5, min_precision=wish).ids
        right = np.asarray(truth[np.arange(len(ids))[:, None], np.maximum(ids, 0)].todense()) > 0
        kept = ids >= 0  # missing places are -1
        answered = kept.any(1)
        mean = ((right & kept).sum(1)[answered] / kept.sum(1)[answered]).mean()
        counts = 100 * answered.mean(), kept.sum() / len(ids)
        tables[1].add(name, wish, 100 * (right & kept).sum() / kept.sum(), 100 * mean, *counts)
    return report


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default=str(TITLES))
    parser.add_argument("--models", type=Path, help="folder of trained retrievers, read where they lie there already")
    parser.add_argument("--pictures", type=Path, help="folder for the reliability diagrams of the first retriever")
    add_output(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = preset.load(given.data_dir)
    development = data.hold_out(0.1, seed=preset.SEED, answerable_only=True)
    retriever = preset.trained(development, given.models and given.models / "held-out")
    form = choose_memory(retriever.encoder, development).form
    shown = (
        ""
        if given.pictures is None
        else "![labels](pictures/reliability.png) ![memory](pictures/reliability-memory.png)"
    )
    tables = (
        Table(
            f"Probabilities of {data.name}, test split",
            dict.fromkeys(("", "places"), "")
            | dict.fromkeys(("error", "Brier", "Brier of scores", "Brier of base rate"), ".4f")
            | {"ranking": ""},
            f"Fitted on {len(development.test):,} held-out rows, judged on {len(data.test):,} test rows; expected "
            f"calibration error over 15 bins of equal mass. {shown}".rstrip(),
        ),
        Table(
            f"Precision kept by min_precision, {data.name}, test split",
            {"": "", "wish": ".1f"}
            | dict.fromkeys(("precision of labels", "of answers", "rows answered", "labels a row"), ".2f"),
            "Of the best five labels; percent. An answer is the list of a row that got one.",
        ),
    )
    texts, truth = data.test["text"][:], data.to_csr("test")
    forms = {"labels": None} | ({"with memory": form} if form.row_weight > 0 else {})
    fitted = {}
    for name, of_memory in forms.items():
        fitted[name] = calibrated(retriever, development, of_memory)
        report = judge(name, retriever, texts, truth, tables)
        if given.pictures is not None:
            file = "reliability.png" if of_memory is None else "reliability-memory.png"
            plot_reliability(report, given.pictures / file)
    retriever = preset.trained(data, given.models and given.models / "all-rows")
    for name, of_memory in forms.items():
        retriever.memory, retriever.calibration = None, fitted[name]
        if of_memory is not None:
            retriever.remember(data.train["text"], data.to_csr("train"), of_memory)
        judge(f"{name}, carried over", retriever, texts, truth, tables)
    write(given.output, *tables)


if __name__ == "__main__":
    main()
