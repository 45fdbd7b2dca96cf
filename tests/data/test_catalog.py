from __future__ import annotations

import pytest

from hf_xmc.data import BENCHMARKS, find_benchmark

NAMED = """LF-AmazonTitles-131K LF-Amazon-131K LF-WikiSeeAlsoTitles-320K LF-WikiSeeAlso-320K LF-WikiTitles-500K
    LF-Wikipedia-500K LF-AmazonTitles-1.3M EURLex-4K lf-gutenberg-science-tiny lf-gutenberg-titles lf-wordnet-titles
    lf-finna-titles""".split()


@pytest.mark.parametrize("name", NAMED)
def test_every_benchmark_is_known_in_any_letter_case(name):
    record = find_benchmark(name)
    assert record is BENCHMARKS[name.lower()] and record.published_as == name and record.name == name.lower()
    assert record.propensity.assumed is False and record.url.startswith("http") and record.max_length > 0
    assert set(record.fields) <= {"title", "content"} and record.fields[0] == "title"
    assert ("content" in record.fields) == (
        name in {"LF-Amazon-131K", "LF-WikiSeeAlso-320K", "LF-Wikipedia-500K", "lf-wordnet-titles"}
    )


def test_other_names_are_nobody():
    assert find_benchmark("my-own") is None and len(BENCHMARKS) == len(NAMED)


def test_constants_are_those_the_papers_evaluate_with():
    constants = {name: (record.propensity.a, record.propensity.b) for name, record in BENCHMARKS.items()}
    assert {name for name, pair in constants.items() if pair == (0.6, 2.6)} == {
        "lf-amazontitles-131k", "lf-amazon-131k", "lf-amazontitles-1.3m",
    }  # fmt: skip
    assert {name for name, pair in constants.items() if pair == (0.5, 0.4)} == {
        "lf-wikititles-500k",
        "lf-wikipedia-500k",
    }
    assert all(pair in ((0.6, 2.6), (0.5, 0.4), (0.55, 1.5)) for pair in constants.values())
    without_filters = {"lf-wikititles-500k", "lf-wikipedia-500k", "eurlex-4k"}
    assert {name for name, record in BENCHMARKS.items() if not record.has_filters} == without_filters


def test_only_published_counts_are_checked():
    record = BENCHMARKS["lf-wikiseealsotitles-320k"]
    record.check_counts(num_train=693_082, num_test=5, num_labels=312_330)  # its test count is unconfirmed
    with pytest.raises(ValueError, match="not LF-WikiSeeAlsoTitles-320K: num_labels is 312,329 instead of 312,330"):
        record.check_counts(num_train=693_082, num_test=5, num_labels=312_329)
