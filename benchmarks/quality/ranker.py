"""What each feature of the ranker is worth, and whether its promises of precision hold, on a held-out part of train.

    OMP_NUM_THREADS=1 python -m benchmarks.quality.ranker [--data_dir DIR] [--fields title content] [--model FOLDER]

An encoder is trained without the held-out rows, with the settings of the recipe for lf-gutenberg-titles. Each feature,
and each source of features, is left out in turn and the networks are fitted anew; all are compared on the same rows,
of which no network had seen those that it ranks. Then the promise is fitted on one half of the rows and looked at in
the other, in 200 random halves. The test split is not looked at.

``--model`` keeps the trained retriever and takes one that lies there in place of training (minutes).
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch

from benchmarks import TITLES
from benchmarks.quality import preset
from benchmarks.table import Table, add_output, write
from hf_xmc.hub.ranker_xmc import PROMISED, Propensity
from hf_xmc.metrics.bootstrap import bootstrap_differences
from hf_xmc.metrics.functional import xmc_metrics
from hf_xmc.ranker.fit import Shown, cross_fit, placed, show
from hf_xmc.ranker.network import bins_of
from hf_xmc.ranker.promise import fit_promise
from hf_xmc.retriever.ranking import hidden_sources, make_sources
from hf_xmc.runs.config import load_data

SHOWN = {"P@1": "precision@1", "P@5": "precision@5", "PSP@1": "psp@1", "PSP@5": "psp@5"}
# Features that one source gives.
SOURCES = {
    "label text": ("text", "text behind"),
    "classifier": ("classifier", "classifier behind", "classifier best"),
    "near rows": ("row votes", "row", "row behind", "row best", "rows", "rows share"),
    "rows by words": ("word row votes", "word rows", "word row", "word row best", "word rows share"),
    "words of labels": ("words", "words behind", "words of label", "words of query", "label words", "query words"),
}
WISHES, NUM_HALVES = (0.5, 0.6, 0.7, 0.8, 0.9), 200


def ablate(worlds: list[Shown], num_queries: int, truth: object, weights: np.ndarray, name: str) -> Table:
    """A line for everything, and one for each feature and source that is left out."""
    columns = {"left out": ""} | dict.fromkeys(SHOWN, ".2f") | {"P@1 lost": "", "PSP@1 lost": ""}
    about = f"{num_queries:,} held-out rows, percent; in brackets the ends of the paired 95 % interval."
    table = Table(f"The ranker's features, held-out part of {name}", columns, about)
    everything = None
    left_out = {"nothing": ()} | SOURCES | {each: (each,) for each in worlds[0].names}
    for label, names in left_out.items():
        some = [world.without(names) for world in worlds]
        logits = cross_fit(some, num_queries, bins_of(np.concatenate([world.table for world in some])))
        ids = placed(some[0], logits, num_queries)[0]
        metrics = xmc_metrics(ids, truth, (1, 5), weights)
        lost: list[str] = ["", ""]
        if everything is None:
            everything = ids
        else:
            gains = bootstrap_differences(everything, ids, truth, (1, 5), weights, num_samples=400)
            ends = ((gains[key].value, gains[key].low, gains[key].high) for key in ("precision@1", "psp@1"))
            lost = [f"{100 * value:+.2f} [{100 * low:+.2f}, {100 * high:+.2f}]" for value, low, high in ends]
        table.add(label, *(100 * metrics[key] for key in SHOWN.values()), *lost)
    return table


def resample(logits: np.ndarray, right: np.ndarray, name: str) -> Table:
    """A line for each wish: how often it is promised and kept, over random halves of the held-out rows."""
    columns = {"wish": ".2f", "promised": ".1f", "kept": ".1f", "precision": ".1f", "rows answered": ".1f"}
    about = f"Percent of {NUM_HALVES} halves of {len(logits):,} rows; kept: of the promises made, in the other half."
    table = Table(f"Promises of precision, held-out part of {name}", columns, about)
    draw = np.random.default_rng(0)
    found: dict[float, list[tuple[float, float]]] = {wish: [] for wish in WISHES}
    for _ in range(NUM_HALVES):
        order = draw.permutation(len(logits))
        one, other = order[: len(order) // 2], order[len(order) // 2 :]
        promise = fit_promise(logits[one], right[one])
        for wish, outcomes in found.items():
            kept = logits[other, :PROMISED] >= promise.threshold(wish)
            if kept.any():
                outcomes.append((right[other, :PROMISED][kept].mean(), kept.any(1).mean()))
    for wish, outcomes in found.items():
        precision, answered = np.array(outcomes).reshape(-1, 2).T
        shares = (len(outcomes) / NUM_HALVES, (precision >= wish).mean(), precision.mean(), answered.mean())
        table.add(wish, *(100 * share if len(outcomes) else None for share in shares))
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default=str(TITLES))
    parser.add_argument("--fields", nargs="*", default=[], help="of queries and labels; those of the data set")
    parser.add_argument("--model", type=Path, help="folder of a trained retriever, read where it lies there already")
    add_output(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = load_data(given.data_dir, given.fields, given.fields)[0]
    development = data.hold_out(0.1, seed=preset.SEED, answerable_only=True)
    retriever, known = preset.trained(development, given.model), development.to_csr("train")
    retriever.remember(development.train["text"], known)
    texts, truth, filters = development.test["text"][:], development.to_csr("test"), development.filters["test"]
    queries, sources = retriever.encoder.query_vectors(texts), make_sources(retriever.parts, known)
    hidden = hidden_sources(retriever.parts, sources, 0.1)
    worlds = [show(some, queries, texts, truth, filters) for some in (sources, hidden) if some is not None]
    propensity = Propensity(data.propensity.a, data.propensity.b, known.shape[0])
    weights = np.exp(propensity.log_inverse(sources.counts).astype(np.float64))
    logits = cross_fit(worlds, len(texts), bins_of(np.concatenate([world.table for world in worlds])))
    _, scores, right = placed(worlds[0], logits, len(texts))
    promises = resample(scores, right, data.name)
    write(given.output, ablate(worlds, len(texts), truth, weights, data.name), promises)


if __name__ == "__main__":
    main()
