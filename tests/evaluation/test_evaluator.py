from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from sentence_transformers import SentenceTransformer
from toys import make_static_encoder, make_words_data

from hf_xmc import LabelIndex, XMCDataset, XMCEvaluator


def test_filtered_pairs_leave_the_ranking_before_it_is_cut() -> None:
    rng = np.random.default_rng(0)
    index = LabelIndex(rng.standard_normal((30, 4), dtype=np.float32))
    queries = rng.standard_normal((3, 4), dtype=np.float32)
    plain, _ = index.search(queries, 30)
    pairs = np.array([[0, plain[0, 0]], [0, plain[0, 2]], [2, plain[2, 1]]])
    ids, scores = index.search(queries, 5, filters=pairs)
    drop = set(map(tuple, pairs.tolist()))
    expected = [[i for i in row if (n, i) not in drop][:5] for n, row in enumerate(plain.tolist())]
    assert ids.tolist() == expected
    assert (np.diff(scores, axis=1) <= 0).all()


def test_a_plain_model_and_an_xmc_encoder_of_the_same_weights_score_alike() -> None:
    data = make_words_data()
    encoder = make_static_encoder()
    plain = SentenceTransformer(modules=list(encoder)[:1], device="cpu")  # no Normalize: scored by cosine
    ours, theirs = XMCEvaluator(data, name="x")(encoder), XMCEvaluator(data, name="x")(plain)
    assert ours == theirs and 0 < ours["x_precision@1"] <= 1


@pytest.mark.parametrize("num_rows", [0, 1, 2])
def test_too_few_train_rows_for_propensities_are_named_at_once(num_rows: int) -> None:
    data = make_words_data()
    none = np.zeros((0, 2), dtype=np.int64)
    few = replace(data, train=data.train.select(range(num_rows)), filters={"train": none, "test": none})
    with pytest.raises(ValueError, match=f"words has {num_rows} train rows; the inverse propensities .* at least 3"):
        XMCEvaluator(few)


def test_three_train_rows_are_enough() -> None:
    data = make_words_data()
    none = np.zeros((0, 2), dtype=np.int64)
    few = replace(data, train=data.train.select(range(3)), filters={"train": none, "test": none})
    evaluator = XMCEvaluator(few)
    assert evaluator.inverse_propensities.min() > 1 and evaluator(make_static_encoder())["psp@1"] > 0


def test_keys_values_and_files(tmp_path: object, tiny: XMCDataset) -> None:
    data = make_words_data()
    evaluator = XMCEvaluator(data, name="dev")
    metrics = evaluator(make_static_encoder(), output_path=str(tmp_path), epoch=1, steps=5)
    names = [f"{m}@{k}" for m in ("precision", "ndcg", "psp") for k in (1, 3, 5)] + ["recall@10", "recall@100"]
    assert {f"dev_{name}" for name in names} <= set(metrics)
    assert evaluator.primary_metric == "dev_precision@1"
    assert metrics["dev_recall@100"] == 1.0  # 17 labels, all of them ranked
    (line,) = (tmp_path / "xmc_evaluation_dev.jsonl").read_text().splitlines()
    assert f'"dev_precision@1": {metrics["dev_precision@1"]}' in line


def test_intervals_hold_the_value_and_paired_ones_the_difference(tiny: XMCDataset) -> None:
    from hf_xmc.runs.baselines import tfidf_knn, tfidf_zero_shot

    evaluator = XMCEvaluator(tiny)
    knn, zero_shot = tfidf_knn(tiny), tfidf_zero_shot(tiny)
    interval = evaluator.intervals(knn)["precision@1"]
    assert interval.low < interval.value == evaluator.metrics(knn)["precision@1"] < interval.high
    gain = evaluator.intervals(zero_shot, knn)["psp@1"]
    expected = evaluator.metrics(zero_shot)["psp@1"] - evaluator.metrics(knn)["psp@1"]
    assert gain.low < gain.value < gain.high and abs(gain.value - expected) < 1e-12


def test_the_head_to_tail_picture_is_a_png(tmp_path: Path, tiny: XMCDataset) -> None:
    from hf_xmc.runs.baselines import tfidf_knn

    file = XMCEvaluator(tiny).plot_head_to_tail({"TF-IDF kNN": tfidf_knn(tiny)}, tmp_path / "p.png")
    assert file.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n" and file.stat().st_size > 5000


def test_metrics_reach_the_model_card_and_say_that_constants_were_assumed() -> None:
    encoder = make_static_encoder()
    evaluator = XMCEvaluator(make_words_data(), name="dev")
    metrics = evaluator(encoder)
    (stored,) = encoder.model_card_data.eval_results_dict.items()
    assert stored[0] is evaluator and stored[1]["dev_precision@1"] == metrics["dev_precision@1"]
    assert evaluator.get_config_dict()["propensity_assumed"] is True
