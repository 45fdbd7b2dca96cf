"""Reading speed and memory of ``load_lf``, beside ``datasets.load_dataset("json")`` and a plain loop.

    python -m benchmarks.speed.data FOLDER [FOLDER ...] [--synthetic]

Every contestant runs in a process of its own with an empty cache. Rows are those of train, test and labels together;
the peak is the largest resident set of the whole process, imports and memory-mapped pages included. ``--synthetic``
first makes a set of the size of LF-AmazonTitles-1.3M (2,248,619 train rows of 22 labels, 1,305,265 labels) in a
temporary folder, which is deleted at the end.
"""

from __future__ import annotations

import argparse
import gzip
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.table import Table, add_output, write

NUM_TRAIN, NUM_TEST, NUM_LABELS, LABELS_PER_ROW = 2_248_619, 10_000, 1_305_265, 22
FILES = ("trn.json.gz", "tst.json.gz", "lbl.json.gz")


def make_synthetic(folder: Path) -> None:
    """Titles of nine words, labels by a long tail."""
    random = np.random.default_rng(0)
    words = [f"word{number}" for number in range(20_000)]
    for name, num_rows in zip(FILES, (NUM_TRAIN, NUM_TEST, NUM_LABELS), strict=True):
        with gzip.open(folder / name, "wt", compresslevel=1) as file:
            for start in range(0, num_rows, 50_000):
                rows = range(start, min(start + 50_000, num_rows))
                titles = random.integers(0, len(words), (len(rows), 9)).tolist()
                ids = (NUM_LABELS * random.random((len(rows), LABELS_PER_ROW)) ** 2).astype(int).tolist()
                for row, title, targets in zip(rows, titles, ids, strict=True):
                    record = {"uid": f"u{row}", "title": " ".join(words[word] for word in title)}
                    if name != FILES[2]:
                        record |= {"target_ind": targets, "target_rel": [1.0] * LABELS_PER_ROW}
                    file.write(json.dumps(record) + "\n")


def load_with_hf_xmc(folder: str, cache: str) -> int:
    """Reads the set; the process has measured nothing else before."""
    from hf_xmc.data import load_lf

    dataset = load_lf(folder, cache_dir=cache)
    return len(dataset.train) + len(dataset.test) + dataset.num_labels


def load_with_datasets(folder: str, cache: str) -> int:
    """The stock JSON reader: no checks, no fields joined, ids as int64."""
    import datasets

    tables = [datasets.load_dataset("json", data_files=f"{folder}/{name}", cache_dir=cache)["train"] for name in FILES]
    return sum(map(len, tables))


def load_with_a_loop(folder: str, cache: str) -> int:
    """json.loads line by line, everything in memory."""
    rows = []
    for name in FILES:
        with gzip.open(Path(folder, name), "rt", encoding="utf-8") as file:
            rows += [json.loads(line) for line in file]
    return len(rows)


CONTESTANTS: dict[str, Callable[[str, str], int]] = {
    "load_lf": load_with_hf_xmc,
    "load_dataset('json')": load_with_datasets,
    "json.loads loop": load_with_a_loop,
}


def measure(contestant: str, folder: str, cache: str) -> None:
    """Runs in a process of its own; prints rows, seconds without imports, and the peak in GiB."""
    import datasets

    datasets.disable_progress_bars()
    if contestant == "load_lf":
        import hf_xmc.data  # noqa: F401
    imported = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    start = time.perf_counter()
    rows = CONTESTANTS[contestant](folder, cache)
    seconds = time.perf_counter() - start
    print(json.dumps([rows, seconds, resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20, imported]))


def run(contestant: str, folder: Path, cache: Path) -> tuple[int, float, float, float]:
    command = [sys.executable, "-m", "benchmarks.speed.data", "--measure", contestant, str(folder), str(cache)]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    return tuple(json.loads(done.stdout.splitlines()[-1]))


def compare(folder: Path, contestants: list[str], table: Table) -> None:
    for contestant in contestants:
        with tempfile.TemporaryDirectory() as cache:
            rows, seconds, peak, imported = run(contestant, folder, Path(cache))
            again = run(contestant, folder, Path(cache))
        told = again[1] if contestant != "json.loads loop" else None
        table.add(folder.name, contestant, rows, seconds, rows / seconds, told, peak, imported)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[1])
    parser.add_argument("folders", nargs="*", type=Path)
    parser.add_argument("--synthetic", action="store_true")
    parser.add_argument("--measure", nargs=3, metavar=("CONTESTANT", "FOLDER", "CACHE"), help=argparse.SUPPRESS)
    add_output(parser)
    options = parser.parse_args()
    if options.measure:
        measure(*options.measure)
        return
    columns = {"data set": "", "reader": "", "rows": ",", "first load s": ".2f", "rows/s": ",.0f"}
    columns |= {"second load s": ".2f", "peak GiB": ".2f", "of it imports": ".2f"}
    table = Table("Reading a data set", columns, about="Wall seconds; the peak is that of the whole process.")
    for folder in options.folders:
        compare(folder, list(CONTESTANTS), table)
    if options.synthetic:
        with tempfile.TemporaryDirectory() as place:
            folder = Path(place, "synthetic-1.3m")
            folder.mkdir()
            make_synthetic(folder)
            compare(folder, ["load_lf"], table)
    write(options.output, table)


if __name__ == "__main__":
    main()
