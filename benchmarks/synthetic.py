"""LF data sets of any shape, by a law of texts and labels that holds for titles; all of it follows from a seed.

    python -m benchmarks.synthetic FOLDER [--num_rows 294805] [--num_labels 131073] [--labels_per_row 2.25]

64 labels make a topic. A topic has eight words of its own, each followed by the next; a label has two. Words are made
of 90 syllables and drawn by Zipf's law (s = 1.05) over 200,000 types, or as many as there are labels. A text has nine
words: two of the topic, two of the label, two of the topic, three of the background. A row has a topic (Zipf, .6) and
in it a label (Zipf, .9) whose two words stand in its text, each left out with probability .4. The number of its labels
is geometric; 92 % of the others are of the topic (Zipf, .9), the rest the first label of another topic. 30 % of the
labels are rows too, with the same uid and text: filter pairs.
"""

from __future__ import annotations

import argparse
import gzip
import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

LABELS_PER_TOPIC, WORDS_PER_TOPIC, BACKGROUND = 64, 8, 3
SYLLABLES = [consonant + vowel for consonant in "bcdfghjklmnprstvwz" for vowel in "aeiou"]
LEFT_OUT, OF_TOPIC, ITEM_SHARE = 0.4, 0.92, 0.3
MAX_LABELS = 66
ROWS_AT_ONCE = 50_000


@dataclass(frozen=True)
class Shape:
    """How large a set is: that of LF-AmazonTitles-131K by default."""

    num_rows: int = 294_805
    num_labels: int = 131_073
    labels_per_row: float = 2.25
    num_test: int = 10_000

    @property
    def num_topics(self) -> int:
        """Topics; label l is of topic ``l % num_topics``."""
        return max(1, self.num_labels // LABELS_PER_TOPIC)


def zipf(random: np.random.Generator, exponent: float, num: int, size: int | tuple[int, ...]) -> np.ndarray:
    """Draws from 0 .. num - 1 by the continuous law of this exponent, which is not 1."""
    power = 1 - exponent
    drawn = (1 + random.random(size) * ((num + 1) ** power - 1)) ** (1 / power)
    return np.minimum(drawn.astype(np.int64) - 1, num - 1)


def word(number: int) -> str:
    """The name of a word type; frequent ones are short."""
    name = ""
    while True:
        name += SYLLABLES[number % len(SYLLABLES)]
        number //= len(SYLLABLES)
        if not number:
            return name
        number -= 1


class World:
    """The words of topics and labels."""

    def __init__(self, shape: Shape, seed: int) -> None:
        self.shape = shape
        self.random = np.random.default_rng(seed)
        self.num_types = max(200_000, shape.num_labels)
        self.names = np.array([word(number) for number in range(self.num_types)], dtype=object)
        self.of_topic = zipf(self.random, 1.05, self.num_types, (shape.num_topics, WORDS_PER_TOPIC))
        self.of_label = zipf(self.random, 1.05, self.num_types, (shape.num_labels, 2))

    def texts(self, topics: np.ndarray, labels: np.ndarray, left_out: float) -> list[str]:
        """Of each topic (n,) and label (n,); words of the label are left out with this probability."""
        random, number = self.random, len(topics)
        first = random.integers(WORDS_PER_TOPIC - 1, size=(number, 2))
        phrases = [self.of_topic[topics[:, None], first[:, [place]] + [0, 1]] for place in (0, 1)]
        background = zipf(random, 1.05, self.num_types, (number, BACKGROUND))
        words = self.names[np.hstack([phrases[0], self.of_label[labels], phrases[1], background])]
        words[:, 2:4][random.random((number, 2)) < left_out] = ""
        return [" ".join(filter(None, line)) for line in words]

    def targets(self, topics: np.ndarray, labels: np.ndarray) -> list[list[int]]:
        """The label ids of each row: its own, others of the topic, and the first ones of other topics."""
        random, shape = self.random, self.shape
        more = np.minimum(random.geometric(1 / shape.labels_per_row, len(topics)), MAX_LABELS) - 1
        rows = np.repeat(np.arange(len(topics)), more)
        in_topic = topics[rows] + shape.num_topics * zipf(random, 0.9, self._size(topics[rows]), len(rows))
        others = random.integers(shape.num_topics, size=len(rows))
        drawn = np.where(random.random(len(rows)) < OF_TOPIC, in_topic, others)
        parts = np.split(drawn, np.cumsum(more)[:-1])
        return [list(dict.fromkeys([int(own), *part.tolist()])) for own, part in zip(labels, parts, strict=True)]

    def points(self, number: int) -> tuple[np.ndarray, np.ndarray]:
        """Topics and labels (n,) of rows."""
        topics = zipf(self.random, 0.6, self.shape.num_topics, number)
        return topics, topics + self.shape.num_topics * zipf(self.random, 0.9, self._size(topics), number)

    def _size(self, topics: np.ndarray) -> int:
        # The last topics may have one label more, which is then no row's own.
        return self.shape.num_labels // self.shape.num_topics


def make(folder: Path, shape: Shape, seed: int = 0) -> None:
    """Write a set in the raw format that ``load_lf`` reads."""
    folder.mkdir(parents=True, exist_ok=True)
    world = World(shape, seed)
    label_topics = np.arange(shape.num_labels) % shape.num_topics
    label_texts = world.texts(label_topics, np.arange(shape.num_labels), 0.0)
    _write(folder / "lbl.json.gz", ({"uid": f"l{row}", "title": text} for row, text in enumerate(label_texts)))
    num_items = min(int(ITEM_SHARE * shape.num_labels), shape.num_rows)
    items = np.sort(world.random.permutation(shape.num_labels)[:num_items])
    _write(folder / "trn.json.gz", _rows(world, shape.num_rows, items, label_texts, "r"))
    _write(folder / "tst.json.gz", _rows(world, shape.num_test, items[:0], label_texts, "t"))
    pairs = "".join(f"{row} {label}\n" for row, label in enumerate(items.tolist()))
    (folder / "filter_labels_train.txt").write_text(pairs)
    (folder / "filter_labels_test.txt").write_text("")


def _rows(
    world: World, num_rows: int, items: np.ndarray, label_texts: list[str], letter: str
) -> Iterator[dict[str, object]]:
    """The items first, then rows of no label's own."""
    for start in range(0, num_rows, ROWS_AT_ONCE):
        own = items[start : start + ROWS_AT_ONCE]
        topics, labels = world.points(min(ROWS_AT_ONCE, num_rows - start))
        topics[: len(own)], labels[: len(own)] = own % world.shape.num_topics, own
        texts, targets = world.texts(topics, labels, LEFT_OUT), world.targets(topics, labels)
        for place, (text, ids) in enumerate(zip(texts, targets, strict=True)):
            is_item = place < len(own)
            uid = f"l{own[place]}" if is_item else f"{letter}{start + place}"
            if is_item:  # its own label is the filter pair; it keeps others, or the first of its topic
                text, ids = label_texts[own[place]], ids[1:] or [int(topics[place])]
            yield {"uid": uid, "title": text, "target_ind": ids, "target_rel": [1.0] * len(ids)}


def _write(path: Path, records: Iterator[dict[str, object]]) -> None:
    with gzip.open(path, "wt", compresslevel=1, encoding="utf8") as file:
        for record in records:
            file.write(json.dumps(record) + "\n")


def add_shape(parser: argparse.ArgumentParser) -> None:
    """Add an option for each number of a shape."""
    for name, value in vars(Shape()).items():
        parser.add_argument(f"--{name}", type=type(value), default=value)


def shape_of(options: argparse.Namespace) -> Shape:
    """What :func:`add_shape` read."""
    return Shape(**{name: getattr(options, name) for name in vars(Shape())})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--seed", type=int, default=0)
    add_shape(parser)
    options = parser.parse_args()
    make(options.folder, shape_of(options), options.seed)


if __name__ == "__main__":
    main()
