"""What labels are worth that a retriever gets after training: recall of the new ones, and what the old ones lose.

    OMP_NUM_THREADS=1 python -m benchmarks.quality.new_labels [--data_dir FOLDER] [--num_new 1000] [--models FOLDER]

Random labels are withheld: their texts leave the label table, their ids leave the train rows, and rows left without a
label are dropped, so that neither the vocabulary nor the loss sees them. Then their texts are given to the trained
retriever. New labels are judged on the rows that need one, among all labels; old labels on all rows that have one. A
right new label before an old one counts as a miss, or it is taken out of the ranking, where hits of new labels should
count neither way.

What row a new label gets was chosen on a held-out part of train, with labels withheld that occur there (first table);
``add_labels`` does as chosen. The test split is looked at once, with other labels withheld (second table). "before
training" is the same encoder, with the same vocabulary, whose labels are ranked by text alone. "ranked" is the ranker,
fitted on the held-out rows and the labels that were not withheld there.

``--models`` keeps the two trained retrievers and takes those that lie there in place of training (minutes).
"""

from __future__ import annotations

import argparse
from dataclasses import dataclass, replace
from pathlib import Path

import datasets
import numpy as np
import torch
from scipy.sparse import csr_matrix, diags

import hf_xmc
from benchmarks import TITLES
from benchmarks.quality import preset
from benchmarks.table import Table, add_output, write
from hf_xmc.metrics.functional import xmc_metrics
from hf_xmc.retriever.ranking import renewed

MEASURES = {"P@1": "precision@1", "P@3": "precision@3", "P@5": "precision@5", "R@10": "recall@10"}
COLUMNS = dict.fromkeys(("", "right new labels"), "") | {"R@10 of new": ".2f"}
COLUMNS |= {f"{name} of old": "+.2f" for name in MEASURES} | {"P@1 of all": ".2f"}
# Places that are searched, so that ten are left where right new labels are taken out.
DEPTH = 60
ABOUT = (
    "{dropped:,} train rows dropped; {new:,} rows need a new label and {old:,} an old one. Percent; of the old labels "
    "first the value without new rows in the index, then the change with them."
)


def withhold(data: hf_xmc.XMCDataset, ids: np.ndarray) -> hf_xmc.XMCDataset:
    """The data set without the labels ``ids`` (n,): the remaining ones are renumbered in their old order."""
    kept = np.setdiff1d(np.arange(data.num_labels), ids)
    new_id = np.full(data.num_labels, -1)
    new_id[kept] = np.arange(len(kept))
    rows = [[new_id[i] for i in row if new_id[i] >= 0] for row in data.train["label_ids"][:]]
    full = [place for place, row in enumerate(rows) if row]
    train = datasets.Dataset.from_dict(
        {"text": data.train.select(full)["text"][:], "label_ids": [rows[place] for place in full]}
    )
    labels = datasets.Dataset.from_dict({"text": data.labels.select(kept)["text"][:]})
    none = {split: np.zeros((0, 2), dtype=np.int64) for split in ("train", "test")}
    return replace(data, train=train, test=train.select([]), labels=labels, filters=none)


@dataclass
class Split:
    """A data set without some labels, and what its ``test`` rows want of old and of new labels.

    Args:
        data: Whose ``test`` rows are asked.
        num_new: Labels to withhold, of those that occur there.
        seed: Of the draw.
    """

    data: hf_xmc.XMCDataset
    num_new: int
    seed: int

    def __post_init__(self) -> None:
        truth = self.data.to_csr("test")
        draw = np.random.default_rng(self.seed)
        new = np.sort(draw.choice(np.unique(truth.indices), self.num_new, replace=False))
        old = np.setdiff1d(np.arange(self.data.num_labels), new)
        self.known = withhold(self.data, new)
        self.new_texts = self.data.labels.select(new)["text"][:]
        self.texts = self.data.test["text"][:]
        self.truth = truth[:, np.concatenate([old, new])].tocsr()  # ids of a retriever that appends the new ones
        is_new = np.arange(self.data.num_labels) >= len(old)
        self.of_new, self.of_old = (_columns(self.truth, wanted) for wanted in (is_new, ~is_new))
        self.wants_new, self.wants_old = (np.flatnonzero(np.diff(part.indptr)) for part in (self.of_new, self.of_old))
        self.base: dict[str, float] = {}

    def table(self, title: str) -> Table:
        counts = {"new": len(self.wants_new), "old": len(self.wants_old)}
        return Table(title, COLUMNS, ABOUT.format(dropped=len(self.data.train) - len(self.known.train), **counts))

    def judge_old(self, table: Table, name: str, ids: np.ndarray) -> None:
        """A line for a ranking of the old labels alone, with which later lines are compared."""
        self.base = percent(ids[self.wants_old], self.of_old[self.wants_old])
        table.add(name, "", None, *(f"{value:.2f}" for value in self.base.values()), None)

    def judge(self, table: Table, name: str, ids: np.ndarray) -> None:
        """Two lines for a ranking of old and new labels together."""
        recall = percent(ids[self.wants_new], self.of_new[self.wants_new])["R@10"]
        first = percent(ids, self.truth)["P@1"]
        pairs = self.of_new.tocoo()
        wanted = pairs.row.astype(np.int64) * self.data.num_labels + pairs.col
        hit = np.isin(np.arange(len(ids))[:, None] * self.data.num_labels + ids, wanted)  # (N, DEPTH)
        left = np.take_along_axis(ids, np.argsort(hit, axis=1, kind="stable"), axis=1)
        for reading, ranking in (("misses", ids), ("taken out", left)):
            found = percent(ranking[self.wants_old], self.of_old[self.wants_old])
            table.add(name, reading, recall, *(found[key] - self.base[key] for key in found), first)


def searched(queries: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """(N, DEPTH) ids of the nearest labels."""
    return hf_xmc.LabelIndex(labels, kind="exact").search(queries, DEPTH)[0]


def _columns(truth: csr_matrix, wanted: np.ndarray) -> csr_matrix:
    """truth (N, L) with nothing but the wanted (L,) columns left."""
    part = (truth @ diags(wanted.astype(np.float32))).tocsr()
    part.eliminate_zeros()
    return part


def percent(ids: np.ndarray, truth: csr_matrix) -> dict[str, float]:
    """The measures of a ranking (N, at least 10)."""
    found = xmc_metrics(ids, truth, (1, 3, 5)) | xmc_metrics(ids, truth, (10,))
    return {name: 100 * found[key] for name, key in MEASURES.items()}


def rows_tried(trained: hf_xmc.Retriever, texts: list[str]) -> dict[str, np.ndarray]:
    """Name -> (n, D) classifier rows of new labels, none with a constant to tune: z is the text's vector."""
    z, free = trained.embedding, trained.classifier - trained.embedding
    new = trained.encoder.encode_halves(texts)[0]
    mean, center = free.mean(0), z.mean(0)
    slope = ((free - mean) * (z - center)).sum() / ((z - center) ** 2).sum()
    return {
        "z": new,
        "z + mean free row (chosen)": new + mean,
        f"z + regression of free rows on z, slope {slope:.3f}": new + mean + slope * (new - center),
    }


def choose(split: Split, models: Path | None) -> tuple[Table, hf_xmc.ranker.Ranker]:
    """The rows that were tried, on held-out rows, and a ranker that is fitted there on the labels that are known."""
    table = split.table(f"Row of a new label, held-out part of {split.data.name}, {split.num_new:,} labels withheld")
    trained = preset.trained(split.known, models and models / "new-labels-held-out")
    queries = trained.encoder.query_vectors(split.texts)
    split.judge_old(table, "old alone", searched(queries, trained.index.vectors))
    for name, rows in rows_tried(trained, split.new_texts).items():
        vectors = trained.encoder.join_labels(trained.encoder.encode_halves(split.new_texts)[0], rows)
        split.judge(table, name, searched(queries, np.concatenate([trained.index.vectors, vectors])))
    trained.remember(split.known.train["text"], split.known.to_csr("train"))
    print(trained.fit_ranker(split.texts, split.of_old[:, : len(trained.labels)]))
    assert trained.ranker is not None
    return table, trained.ranker


def look(split: Split, models: Path | None, ranker: hf_xmc.ranker.Ranker) -> Table:
    """What ``add_labels`` does, on the test split, by the label search and by a ranker."""
    table = split.table(f"{split.num_new:,} labels that {split.data.name} never trained on, test split")
    names = split.known.labels["text"][:]
    encoder = preset.start(split.known)
    queries, labels = encoder.query_vectors(split.texts), encoder.label_vectors(names + split.new_texts)
    split.judge_old(table, "before training, old alone", searched(queries, labels[: len(names)]))
    split.judge(table, "before training", searched(queries, labels))
    trained = preset.trained(split.known, models and models / "new-labels-test")
    queries = trained.encoder.query_vectors(split.texts)
    trained.remember(split.known.train["text"], split.known.to_csr("train"))
    trained.parts = renewed(trained.parts, ranker)
    ranked = trained.rank(split.texts, DEPTH).ids
    split.judge_old(table, "trained, old alone", searched(queries, trained.index.vectors))
    trained.add_labels(split.new_texts)
    split.judge(table, "added", searched(queries, trained.index.vectors))
    split.judge_old(table, "ranked, old alone", ranked)
    split.judge(table, "added, ranked", trained.rank(split.texts, DEPTH).ids)
    return table


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", default=str(TITLES))
    parser.add_argument("--num_new", type=int, default=1000)
    parser.add_argument("--seeds", type=int, nargs=2, default=(0, 1), help="of the labels withheld: held-out, test")
    parser.add_argument("--models", type=Path, help="folder of trained retrievers, read where they lie there already")
    add_output(parser)
    given = parser.parse_args()
    torch.set_num_threads(1)
    data = preset.load(given.data_dir)
    development = data.hold_out(0.1, seed=preset.SEED, answerable_only=True)
    chosen, ranker = choose(Split(development, given.num_new, given.seeds[0]), given.models)
    write(given.output, chosen, look(Split(data, given.num_new, given.seeds[1]), given.models, ranker))


if __name__ == "__main__":
    main()
