"""The benchmarks hf_xmc knows by name: one frozen record each, so that no code branches on a data set's name.

Counts and propensity constants are those of the Extreme Classification Repository and the papers that use it; a count
that could not be confirmed is None and is not checked. Papers differ in A and B for the Wiki and EURLex sets, so
print both beside every PSP.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

XC_URL = "http://manikvarma.org/downloads/XC/XMLRepository.html"
PECOS_URL = "https://archive.org/download/pecos-dataset/xmc-base/eurlex-4k.tar.gz"
GUTENBERG_URL = "https://github.com/ropensci/gutenbergr"
WORDNET_URL = "https://wordnet.princeton.edu"
FINNA_URL = "https://github.com/NatLibFi/Annif-corpora"

JSON_FILES = ("trn.json.gz", "tst.json.gz", "lbl.json.gz")
FILTER_FILES = ("filter_labels_train.txt", "filter_labels_test.txt")
PECOS_FILES = ("X.trn.txt", "X.tst.txt", "Y.trn.npz", "Y.tst.npz", "output-items.txt")


@dataclass(frozen=True)
class Propensity:
    """Constants of the inverse propensity q_l = 1 + (ln N - 1) (B + 1)^A (n_l + B)^-A of Jain et al. (KDD 2016).

    ``assumed`` is True where nobody fitted A and B for this data set and the usual 0.55 and 1.5 stand in.
    """

    a: float = 0.55
    b: float = 1.5
    assumed: bool = True


@dataclass(frozen=True)
class Benchmark:
    """What is known about one published data set.

    Attributes:
        name: Kebab-case key; the same string in recipes, YAML files, cards and repo ids.
        published_as: The name its authors print.
        url: Where the files are published.
        num_train, num_test, num_labels: Expected counts, None where unconfirmed.
        propensity: The A and B its papers evaluate with.
        max_length: Tokens a text that keep nearly all of it.
        fields, label_fields: Raw fields that make a query text and a label text.
        files: The raw files of the set, filter files included where it has them.
    """

    name: str
    published_as: str
    url: str
    num_train: int | None
    num_test: int | None
    num_labels: int | None
    propensity: Propensity
    max_length: int
    fields: tuple[str, ...] = ("title",)
    label_fields: tuple[str, ...] = ("title",)
    files: tuple[str, ...] = JSON_FILES + FILTER_FILES

    @property
    def has_filters(self) -> bool:
        """Whether the set is evaluated with filter pairs."""
        return FILTER_FILES[0] in self.files

    def check_counts(self, *, num_train: int, num_test: int, num_labels: int) -> None:
        """Compare counts with the published ones.

        Raises:
            ValueError: If one differs.
        """
        came = {"num_train": num_train, "num_test": num_test, "num_labels": num_labels}
        expected = {key: getattr(self, key) for key in came}
        wrong = {key: value for key, value in came.items() if expected[key] not in (None, value)}
        if wrong:
            told = ", ".join(f"{key} is {value:,} instead of {expected[key]:,}" for key, value in wrong.items())
            raise ValueError(
                f"These files are not {self.published_as}: {told}. Fetch them again from {self.url}, "
                "or pass name= with another name if this is a data set of your own."
            )


AMAZON = Propensity(0.6, 2.6, assumed=False)
WIKI = Propensity(0.5, 0.4, assumed=False)
USUAL = Propensity(0.55, 1.5, assumed=False)

FULL_TEXT, WORDNET = ("title", "content"), "lf-wordnet-titles"
AMAZON_131K, WIKI_320K = (294_805, 134_835, 131_073), (693_082, None, 312_330)
WIKI_500K, AMAZON_1M = (1_813_391, 783_743, 501_070), (2_248_619, 970_237, 1_305_265)

# fmt: off
_RECORDS = (
    Benchmark("lf-amazontitles-131k", "LF-AmazonTitles-131K", XC_URL, *AMAZON_131K, AMAZON, 32),
    Benchmark("lf-amazon-131k", "LF-Amazon-131K", XC_URL, *AMAZON_131K, AMAZON, 128, FULL_TEXT),
    Benchmark("lf-wikiseealsotitles-320k", "LF-WikiSeeAlsoTitles-320K", XC_URL, *WIKI_320K, USUAL, 32),
    Benchmark("lf-wikiseealso-320k", "LF-WikiSeeAlso-320K", XC_URL, *WIKI_320K, USUAL, 256, FULL_TEXT),
    Benchmark("lf-wikititles-500k", "LF-WikiTitles-500K", XC_URL, *WIKI_500K, WIKI, 32, files=JSON_FILES),
    Benchmark("lf-wikipedia-500k", "LF-Wikipedia-500K", XC_URL, *WIKI_500K, WIKI, 256, FULL_TEXT, files=JSON_FILES),
    Benchmark("lf-amazontitles-1.3m", "LF-AmazonTitles-1.3M", XC_URL, *AMAZON_1M, AMAZON, 32),
    Benchmark("eurlex-4k", "EURLex-4K", PECOS_URL, 15_449, 3_865, 3_956, USUAL, 512, files=PECOS_FILES),
    Benchmark("lf-gutenberg-science-tiny", "lf-gutenberg-science-tiny", GUTENBERG_URL, 4_191, 1_008, 4_036, USUAL, 32),
    Benchmark("lf-gutenberg-titles", "lf-gutenberg-titles", GUTENBERG_URL, 46_443, 13_107, 30_458, USUAL, 32),
    Benchmark(WORDNET, WORDNET, WORDNET_URL, 81_169, 23_598, 81_078, USUAL, 64, FULL_TEXT, FULL_TEXT),
    Benchmark("lf-finna-titles", "lf-finna-titles", FINNA_URL, 474_274, 117_636, 24_928, USUAL, 32),
)
# fmt: on

BENCHMARKS: dict[str, Benchmark] = {record.name: record for record in _RECORDS}


def find_benchmark(name: str) -> Benchmark | None:
    """The record of ``name`` in any letter case ("LF-AmazonTitles-131K"), or None for a data set of one's own."""
    return BENCHMARKS.get(name.lower())


def check_name(name: object) -> None:
    """Refuse a data set's name that no repo of the Hub can have, as it becomes part of paths, cards and tables.

    Raises:
        ValueError: Unless it is 1 to 96 letters, digits, ``-``, ``_`` and ``.``, without ``..`` or ``--``, with
            neither ``-`` nor ``.`` at an end.
    """
    if not isinstance(name, str) or not re.fullmatch(r"(?!.*(\.\.|--))(?![-.])[\w.-]{1,96}(?<![-.])", name, re.ASCII):
        raise ValueError(
            f"name is {name!r:.80}; expected at most 96 letters, digits, '-', '_' and '.', as in a repo of the Hub, "
            "without '..' or '--' and with neither '-' nor '.' at an end"
        )
