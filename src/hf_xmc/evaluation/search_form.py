"""How the two halves of a joint vector are weighed, chosen on held-out rows."""

from __future__ import annotations

from hf_xmc.encoders.encoder import XMCEncoder
from hf_xmc.evaluation.evaluator import XMCEvaluator
from hf_xmc.hub.repo_xmc import SearchForm


def fit_search_form(
    encoder: XMCEncoder, evaluator: XMCEvaluator, metric: str = "precision@1", steps: int = 10
) -> tuple[SearchForm, dict[SearchForm, dict[str, float]]]:
    """The search form that does best on the evaluator's data, each half alone among the candidates.

    Args:
        encoder: With a classifier; its search form is set to the best.
        evaluator: Of a held-out split, never of the test split.
        metric: The metric to maximise.
        steps: The weight u is tried at ``0, 1 / steps, ..., 1``, with normalised rows and without.

    Returns:
        The best form and the metrics of every form tried.

    Raises:
        ValueError: if the encoder has no classifier.
    """
    if encoder.label_classifier is None:
        raise ValueError("there is nothing to fit: the encoder has no classifier")
    encode = {"batch_size": evaluator.batch_size, "show_progress_bar": evaluator.show_progress_bar}
    labels = encoder.label_halves(evaluator.data.labels["text"][:], **encode)
    queries = encoder.encode_halves(evaluator.data.test["text"][:], **encode)
    tried: dict[SearchForm, dict[str, float]] = {}
    for normalize in (True, False):
        for step in range(steps + 1):
            encoder.search_form = SearchForm(step / steps, normalize)
            ids, _ = evaluator.search(encoder.join_queries(*queries), encoder.join_labels(*labels))
            tried[encoder.search_form] = evaluator.metrics(ids)
    encoder.search_form = max(tried, key=lambda form: tried[form][metric])
    return encoder.search_form, tried
