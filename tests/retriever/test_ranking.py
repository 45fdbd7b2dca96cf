"""A ranker orders what a retriever answers: it gains, is saved, and survives labels that come and go."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from toys import TINY, make_static_encoder, make_words_data

import hf_xmc
from hf_xmc.encoders.start import start_encoder
from hf_xmc.hub.features_xmc import FEATURES, find_near, look
from hf_xmc.hub.server_xmc import StaticServer
from hf_xmc.metrics.functional import xmc_metrics
from hf_xmc.retriever.ranking import make_sources, renewed


@pytest.fixture(scope="module")
def development() -> hf_xmc.XMCDataset:
    return hf_xmc.load_lf(TINY).hold_out(0.2, seed=1, answerable_only=True)


@pytest.fixture(scope="module")
def fitted(development: hf_xmc.XMCDataset) -> hf_xmc.Retriever:
    """A static encoder that was not trained: training rows say what it does not know."""
    encoder = start_encoder("static", development, max_seq_length=64)
    encoder.fold()
    retriever = hf_xmc.Retriever.build(encoder, development.labels["text"])
    retriever.remember(development.train["text"], development.to_csr("train"))
    retriever.fit_ranker(development.test["text"], development.to_csr("test"))
    return retriever


@pytest.fixture
def retriever(fitted: hf_xmc.Retriever) -> Iterator[hf_xmc.Retriever]:
    parts = fitted.parts
    yield hf_xmc.Retriever(parts)
    fitted.parts = parts


def test_it_gains_on_rows_that_it_was_not_fitted_on(fitted: hf_xmc.Retriever) -> None:
    data = hf_xmc.load_lf(TINY)
    texts, truth = data.test["text"][:], data.to_csr("test")
    plain, votes, ranked = (
        xmc_metrics(fitted.rank(texts, 5, **options).ids, truth, (1, 5))
        for options in ({"memory": False}, {"memory": True}, {})
    )
    assert ranked["precision@1"] > max(plain["precision@1"], votes["precision@1"]) + 0.03
    assert ranked["precision@5"] > max(plain["precision@5"], votes["precision@5"])


def test_the_report_says_what_the_metrics_say(development: hf_xmc.XMCDataset, retriever: hf_xmc.Retriever) -> None:
    texts, truth = development.test["text"][:], development.to_csr("test")
    report = retriever.fit_ranker(texts, truth)
    plain = xmc_metrics(retriever.rank(texts, 100, memory=False).ids, truth, (1,))
    assert report.before["precision@1"] == pytest.approx(plain["precision@1"], abs=1e-9)
    gain = report.gains["precision@1"]
    assert gain.value == pytest.approx(report.after["precision@1"] - report.before["precision@1"])
    assert gain.low < gain.value < gain.high and "min_precision, kept with probability 0.95" in str(report)
    assert retriever.reliability(texts, truth).parts[0].error < 0.15


def test_the_dial_goes_from_frequent_labels_to_rare_ones(retriever: hf_xmc.Retriever) -> None:
    texts = hf_xmc.load_lf(TINY).test["text"][:300]
    counts = retriever.ranker.counts
    means = [counts[retriever.rank(texts, 1, tail=tail).ids].mean() for tail in (0.0, 0.5, 1.0)]
    assert means[0] > means[1] > means[2]
    likely, rare = (retriever.rank(texts, 30, tail=tail) for tail in (0.0, 1.0))
    assert (np.diff(likely.probabilities, axis=1) <= 0).all() and (np.diff(rare.scores, axis=1) <= 0).all()
    for row in range(20):  # a label has one probability, wherever it stands
        ours = dict(zip(likely.ids[row], likely.probabilities[row], strict=True))
        for label, chance in zip(rare.ids[row], rare.probabilities[row], strict=True):
            assert ours.get(label, chance) == pytest.approx(chance, abs=1e-6)


def test_a_promise_is_kept_and_without_one_nothing_is_answered(retriever: hf_xmc.Retriever) -> None:
    data = hf_xmc.load_lf(TINY)
    texts, truth = data.test["text"][:], data.to_csr("test").tocsr()
    ids = retriever.rank(texts, 5, min_precision=0.5).ids
    kept = ids >= 0
    right = np.asarray(truth[np.nonzero(kept)[0], ids[kept]]).ravel() > 0
    assert kept.sum() > 300 and right.mean() > 0.5
    with pytest.warns(UserWarning, match="allow at most 0.* to be promised"):
        assert (retriever.rank(texts[:5], 5, min_precision=0.999).ids == -1).all()


def test_it_is_saved_and_answers_the_same_elsewhere(retriever: hf_xmc.Retriever, tmp_path: Path) -> None:
    texts = hf_xmc.load_lf(TINY).test["text"][:40]
    retriever.save_pretrained(tmp_path)
    ours = retriever.rank(texts, 150, tail=0.3)  # deeper than there are candidates
    theirs = hf_xmc.Retriever.from_pretrained(tmp_path).rank(texts, 150, tail=0.3)
    np.testing.assert_array_equal(theirs.ids, ours.ids)
    np.testing.assert_allclose(theirs.scores, ours.scores, atol=1e-6)
    assert (ours.ids >= 0).all() and (np.diff(ours.scores, axis=1) <= 0).all()
    assert all(len(set(row)) == 150 for row in ours.ids.tolist())
    served = StaticServer(tmp_path)(texts, 5, tail=0.3)
    assert [[one["label_id"] for one in row] for row in served] == ours.ids[:, :5].tolist()
    retriever.ranker = None
    retriever.save_pretrained(tmp_path)
    assert hf_xmc.Retriever.from_pretrained(tmp_path).ranker is None


def test_labels_that_come_are_found_by_their_words_and_those_that_go_are_gone(retriever: hf_xmc.Retriever) -> None:
    first = retriever.rank(["Steam turbines of the zorblax"], 1).ids[0, 0]
    (new,) = retriever.add_labels(["Zorblax turbines"])
    ids = retriever.rank(["Steam turbines of the zorblax"], 5).ids[0]
    assert new in ids and len(retriever.ranker.counts) == len(retriever.labels)
    retriever.remove_labels([int(first)])
    assert first not in retriever.rank(["Steam turbines of the zorblax"], 50).ids


def test_only_candidates_are_answered_with_the_probabilities_that_they_have_among_all(
    retriever: hf_xmc.Retriever,
) -> None:
    texts = hf_xmc.load_lf(TINY).test["text"][:20]
    everything = retriever.rank(texts, 40)
    wanted = np.unique(everything.ids[:, 3])
    some = retriever.rank(texts, len(wanted), candidates=wanted)
    for row in range(len(texts)):
        assert set(some.ids[row][some.ids[row] >= 0]) <= set(wanted.tolist())
        place = some.ids[row].tolist().index(everything.ids[row, 3])
        assert some.probabilities[row, place] == pytest.approx(everything.probabilities[row, 3], abs=0.05)


def test_evidence_says_what_each_feature_did(retriever: hf_xmc.Retriever) -> None:
    texts = hf_xmc.load_lf(TINY).test["text"][:30]
    answers = [answer for line in retriever.predict(texts, 3, return_evidence=True) for answer in line]
    assert any(answer["evidence"]["rows"] for answer in answers)
    for answer in answers[:5]:
        told = answer["evidence"]["features"]
        assert set(told) == set(retriever.ranker.names) <= set(FEATURES)
        sizes = [abs(value) for value in told.values()]
        assert sizes == sorted(sizes, reverse=True) and sizes[0] > 0.05


def test_features_are_what_their_names_say(fitted: hf_xmc.Retriever, development: hf_xmc.XMCDataset) -> None:
    """A few candidates, told by loops over the training rows."""
    texts = development.test["text"][:6]
    queries, truth = fitted.encoder.query_vectors(texts), development.to_csr("train").toarray() > 0
    sources = make_sources(fitted.parts, development.to_csr("train"))
    found = look(sources, queries, fitted.ranker.bags(texts), find_near(sources, queries))
    keys = fitted.encoder.key_vectors(development.train["text"][:]).astype(np.float16).astype(np.float32)
    scores = queries @ keys.T
    checked = 0
    for place in range(0, len(found.query), 7):
        query, label = found.query[place], found.label[place]
        near = np.argsort(-np.where(truth.any(1), scores[query], -9), kind="stable")[:50]
        having = near[truth[near, label]]
        weights = np.exp(20 * (scores[query, near] - scores[query, near[0]]))
        votes = weights[truth[near, label]].sum() / weights.sum()
        told = {name: float(column[place]) for name, column in found.features.items()}
        assert told["row votes"] == pytest.approx(np.sqrt(votes), abs=1e-3)
        assert told["rows"] == pytest.approx(np.sqrt(len(having)), abs=1e-5)
        assert told["row"] == pytest.approx(scores[query, having].max() if len(having) else 0, abs=1e-4)
        assert told["frequency"] == pytest.approx(np.log1p(truth[:, label].sum()), abs=1e-5)
        assert told["text"] == pytest.approx(float(queries[query] @ fitted.embedding[label]), abs=1e-5)
        checked += len(having) > 0
    assert checked > 10 and set(found.features) <= set(FEATURES)


def test_without_a_memory_it_weighs_what_is_left_and_needs_to_know_the_training_rows(
    development: hf_xmc.XMCDataset, retriever: hf_xmc.Retriever
) -> None:
    ranked = retriever.ranker
    retriever.memory, retriever.ranker = None, None
    texts, truth = development.test["text"][:], development.to_csr("test")
    with pytest.raises(ValueError, match="how frequent is each label"):
        retriever.fit_ranker(texts, truth)
    report = retriever.fit_ranker(texts, truth, train_truth=development.to_csr("train"))
    assert "row votes" not in retriever.ranker.names and "words" in retriever.ranker.names
    assert report.after["precision@1"] > report.before["precision@1"]
    retriever.ranker = ranked
    with pytest.raises(ValueError, match="was fitted with row votes, .* which this retriever has no source for"):
        retriever.predict("a text")


def test_a_ranker_goes_to_a_retriever_that_remembers_more_rows(retriever: hf_xmc.Retriever) -> None:
    data = hf_xmc.load_lf(TINY)
    retriever.remember(data.train["text"], data.to_csr("train"))
    counts = np.diff(data.to_csr("train").tocsc().indptr)
    np.testing.assert_array_equal(retriever.ranker.counts, counts)
    assert retriever.ranker.propensity.num_rows == len(data.train) == len(retriever.ranker.words.rows.bags)
    other = hf_xmc.Retriever.build(retriever.encoder, data.labels["text"])
    assert renewed(other.parts) is other.parts


@pytest.mark.parametrize(
    ("options", "says"),
    [
        ({"tail": 2}, r"tail must lie in \[0, 1\], got 2"),
        ({"tail": None}, r"tail must lie in \[0, 1\], got None"),
        ({"tail": 0.5, "memory": True}, "tail needs a ranker"),
        ({"min_precision": 0}, r"min_precision must lie in \(0, 1\], got 0"),
        ({"min_precision": 0.5, "memory": False}, "min_precision needs probabilities"),
    ],
)
def test_options_that_cannot_be_answered_are_refused(
    options: dict[str, object], says: str, fitted: hf_xmc.Retriever
) -> None:
    with pytest.raises(ValueError, match=says):
        fitted.predict("a text", **options)  # type: ignore[arg-type]


def test_wrong_held_out_rows_are_refused(fitted: hf_xmc.Retriever) -> None:
    with pytest.raises(ValueError, match="truth must have shape"):
        fitted.fit_ranker(["a", "b"], [[0]])
    with pytest.raises(ValueError, match="some thousands of held-out rows"):
        fitted.fit_ranker(["a", "b"], [[0], [1]])
    with pytest.raises(ValueError, match=r"hidden is a share of the labels, in \[0, 1\), got 1"):
        fitted.fit_ranker(["a", "b"], [[0], [1]], hidden=1)
    with pytest.raises(ValueError, match="say which: memory=True or False"):
        fitted.calibrate(["a", "b"], [[0], [1]])
    data = make_words_data()
    plain = hf_xmc.Retriever.build(make_static_encoder(), data.labels["text"])
    with pytest.raises(ValueError, match="tail needs a ranker; make one"):
        plain.predict("a text", tail=0.5)
