"""Label trees on TF-IDF: PECOS (XR-Linear), Omikuji (Parabel), napkinXC (PLT). Runs in the peers' own environment.

    python trees.py PEER TASK OUT.npz          trains on TASK, ranks its test texts, writes ids and scores
    python trees.py PEER TASK --serve          trains, then answers timing requests on stdin, one JSON line each

PEER is a key of ``PEERS``. TASK is a folder as ``tasks.export_task`` writes it: train.txt, test.txt (a text a line),
truth.npz (CSR of train rows and labels), task.json (places wanted). Nothing of hf_xmc is imported.

Served requests: ``single START COUNT K`` ranks the test texts START .. START + COUNT - 1 one by one, and ``batch START
COUNT K`` together, both from raw text to label ids; the answer is ``{"cpu_seconds": [...], "wall_seconds": [...]}``, a
number for each call of the model. The first line that comes is ``{"ready": PEER}``. ``servers.PeerServer`` speaks
this.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path
from typing import Protocol, TextIO

import numpy as np
import scipy.sparse as sp

BEAM = 20
SEED = 0


class Peer(Protocol):
    """Raw texts in, rankings out."""

    def fit(self, texts: list[str], truth: sp.csr_matrix) -> None: ...

    def rank(self, texts: list[str], k: int) -> sp.csr_matrix:
        """Scores (N, L) of the at most k best labels of each text."""
        ...


class Pecos:
    """XR-Linear over PIFA trees, its defaults, scores averaged over trees as its text2text does.

    Word TF-IDF of scikit-learn as for the others: its own splits at white space alone and ranks worse on titles with
    punctuation (precision@1 35.1 instead of 36.9 on lf-gutenberg-titles).
    """

    def __init__(self, num_trees: int) -> None:
        self.num_trees = num_trees

    def fit(self, texts: list[str], truth: sp.csr_matrix) -> None:
        from pecos.xmc import Indexer, LabelEmbeddingFactory
        from pecos.xmc.xlinear.model import XLinearModel

        self.vectorizer, features = _word_tfidf(texts)
        means = LabelEmbeddingFactory.create(truth, features, method="pifa")
        trees = [
            Indexer.gen(means, indexer_type="hierarchicalkmeans", seed=SEED + tree, threads=1)
            for tree in range(self.num_trees)
        ]
        models = [XLinearModel.train(features, truth, C=tree, threads=1) for tree in trees]
        self.models = []
        for model in models:  # the form for prediction is only had from a file
            with tempfile.TemporaryDirectory() as folder:
                model.save(folder)
                self.models.append(XLinearModel.load(folder, is_predict_only=True))

    def rank(self, texts: list[str], k: int) -> sp.csr_matrix:
        from pecos.utils.smat_util import sorted_csr

        features = self.vectorizer.transform(texts)
        scores = [model.predict(features, beam_size=BEAM, only_topk=k, threads=1) for model in self.models]
        return scores[0] if len(scores) == 1 else sorted_csr(sum(scores).tocsr() / len(scores), only_topk=k)


class Omikuji:
    """Parabel, three trees, its defaults; word TF-IDF of scikit-learn, as Annif feeds it."""

    def fit(self, texts: list[str], truth: sp.csr_matrix) -> None:
        import omikuji
        from sklearn.datasets import dump_svmlight_file

        self.vectorizer, features = _word_tfidf(texts)
        self.num_labels = truth.shape[1]
        with tempfile.TemporaryDirectory() as folder:
            rows, data = Path(folder, "rows.txt"), Path(folder, "data.txt")
            dump_svmlight_file(features, truth, str(rows), multilabel=True)
            with rows.open() as source, data.open("w") as target:
                target.write(f"{features.shape[0]} {features.shape[1]} {self.num_labels}\n")
                target.writelines(source)
            self.model = omikuji.Model.train_on_data(str(data), n_threads=1)
        self.model.init_prediction_thread_pool(1)

    def rank(self, texts: list[str], k: int) -> sp.csr_matrix:
        features = self.vectorizer.transform(texts)
        answers = []
        for start, end in pairwise(features.indptr):
            pairs = zip(features.indices[start:end].tolist(), features.data[start:end].tolist(), strict=True)
            answers.append(self.model.predict(list(pairs), beam_size=BEAM, top_k=k))
        return _matrix(answers, self.num_labels)


class NapkinXC:
    """A probabilistic label tree with its defaults; word TF-IDF of scikit-learn."""

    def fit(self, texts: list[str], truth: sp.csr_matrix) -> None:
        from napkinxc.models import PLT

        self.vectorizer, features = _word_tfidf(texts)
        self.num_labels = truth.shape[1]
        self.folder = tempfile.TemporaryDirectory()
        self.model = PLT(self.folder.name, threads=1, seed=SEED)
        self.model.fit(features, _lists(truth))
        self.model.load()

    def rank(self, texts: list[str], k: int) -> sp.csr_matrix:
        return _matrix(self.model.predict_proba(self.vectorizer.transform(texts), top_k=k), self.num_labels)


def _word_tfidf(texts: list[str]) -> tuple[object, sp.csr_matrix]:
    from sklearn.feature_extraction.text import TfidfVectorizer

    vectorizer = TfidfVectorizer(sublinear_tf=True, dtype=np.float32, token_pattern=r"(?u)\b\w+\b")
    features = vectorizer.fit_transform(texts)
    features.sort_indices()  # PECOS and napkinXC need them so
    return vectorizer, features


def _lists(truth: sp.csr_matrix) -> list[list[int]]:
    return [truth.indices[start:end].tolist() for start, end in pairwise(truth.indptr)]


def _matrix(answers: list[list[tuple[int, float]]], num_labels: int) -> sp.csr_matrix:
    flat = [pair for answer in answers for pair in answer]
    ends = np.cumsum([0] + [len(answer) for answer in answers])
    scores = np.array([score for _, score in flat], dtype=np.float32)
    labels = np.array([label for label, _ in flat], dtype=np.int32)
    return sp.csr_matrix((scores, labels, ends), shape=(len(answers), num_labels))


PEERS = {
    "pecos-3": lambda: Pecos(3),
    "pecos-1": lambda: Pecos(1),
    "omikuji": Omikuji,
    "napkinxc": NapkinXC,
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("peer", choices=PEERS)
    parser.add_argument("task", type=Path)
    parser.add_argument("output", type=Path, nargs="?")
    parser.add_argument("--serve", action="store_true")
    options = parser.parse_args()
    # The libraries print progress on stdout, some from C: it goes to stderr, so that answers stand alone.
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    train = options.task.joinpath("train.txt").read_text(encoding="utf8").split("\n")
    test = options.task.joinpath("test.txt").read_text(encoding="utf8").split("\n")
    truth = sp.load_npz(options.task / "truth.npz").astype(np.float32)
    peer: Peer = PEERS[options.peer]()
    start = time.process_time()
    peer.fit(train, truth)
    trained = time.process_time()
    if options.serve:
        serve(peer, options.peer, test, answers)
        return
    k = json.loads((options.task / "task.json").read_text())["k"]
    ids, scores = top(peer.rank(test, k), k)
    seconds = {"training": trained - start, "prediction": time.process_time() - trained}
    np.savez(options.output, ids=ids, scores=scores, seconds=json.dumps(seconds))


def top(ranking: sp.csr_matrix, k: int) -> tuple[np.ndarray, np.ndarray]:
    """ids (N, k) int64 and scores (N, k) float32, best first, padded with -1 and -inf."""
    ranking = sp.csr_matrix(ranking)
    rows = np.repeat(np.arange(ranking.shape[0]), np.diff(ranking.indptr))
    order = np.lexsort((ranking.indices, -ranking.data, rows))
    place = np.arange(len(rows)) - ranking.indptr[rows]
    kept = place < k
    ids = np.full((ranking.shape[0], k), -1, dtype=np.int64)
    scores = np.full((ranking.shape[0], k), -np.inf, dtype=np.float32)
    ids[rows[kept], place[kept]] = ranking.indices[order][kept]
    scores[rows[kept], place[kept]] = ranking.data[order][kept]
    return ids, scores


def serve(peer: Peer, name: str, texts: list[str], answers: TextIO) -> None:
    """Answer timing requests until stdin ends."""
    print(json.dumps({"ready": name}), file=answers, flush=True)
    for line in sys.stdin:
        kind, *numbers = line.split()
        start, count, k = map(int, numbers)
        part = texts[start : start + count]
        calls = [[text] for text in part] if kind == "single" else [part]
        cpu, wall = [], []
        for call in calls:
            cpu_start, wall_start = time.process_time(), time.perf_counter()
            ids, _ = top(peer.rank(call, k), k)
            wall.append(time.perf_counter() - wall_start)
            cpu.append(time.process_time() - cpu_start)
        print(json.dumps({"cpu_seconds": cpu, "wall_seconds": wall}), file=answers, flush=True)


if __name__ == "__main__":
    main()
