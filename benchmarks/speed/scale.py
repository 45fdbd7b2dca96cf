"""The whole path at any size, stage by stage: CPU seconds, peak memory, bytes on disk.

    OMP_NUM_THREADS=1 python -m benchmarks.speed.scale [--num_labels 131073 --num_rows 294805 ...] [--max_steps N]

A set is made by benchmarks/synthetic.py. One process loads it, makes the static table, trains it with UniDEC's loss
and a classifier row a label, builds a retriever and saves it; another one, which has never seen the training, opens
what was saved, answers, adds labels and predicts. Peaks are read from /proc and hold all of the process, imports too.
"""

from __future__ import annotations

import argparse
import gc
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks.synthetic import add_shape, make, shape_of
from benchmarks.table import Table, add_output, write

GIB, MIB = 2**30, 2**20
NUM_QUERIES, NUM_NEW = 32, 1000
# As recipes/unidec.py reads it where no config names others.
SETTINGS = {
    "per_device_train_batch_size": 1024, "learning_rate": 1e-2, "classifier_learning_rate": 2e-3, "token_dropout": 0.1,
    "positives_per_row": 3, "random_negatives": 1000, "num_train_epochs": 1, "save_strategy": "no",
    "report_to": "none", "disable_tqdm": True, "use_cpu": True,
}  # fmt: skip


class Stages:
    """Prints a line of JSON for every stage: its name, CPU seconds, peak and what is held after it in GiB, MiB."""

    @contextmanager
    def stage(self, name: str, disk: Callable[[], int] | None = None, times: int = 1) -> Iterator[None]:
        """Measure what stands below; ``disk`` tells the bytes it wrote, ``times`` how often it is done."""
        gc.collect()
        Path("/proc/self/clear_refs").write_text("5")  # the peak begins anew
        start = time.process_time()
        yield
        seconds = (time.process_time() - start) / times
        peak = _status("VmHWM")
        gc.collect()
        line = [name, seconds, peak / GIB, _status("VmRSS") / GIB, None if disk is None else disk() / MIB]
        print(json.dumps({"stage": line}), flush=True)


def _status(key: str) -> int:
    """Bytes of this process, by their name in /proc."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(key + ":"))


def size_of(folder: Path) -> int:
    """Bytes of all files below a folder."""
    return sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())


def build(folder: Path, options: argparse.Namespace) -> None:
    """From nothing to a saved retriever."""
    stages = Stages()
    with stages.stage("generate", lambda: size_of(folder / "raw")):
        make(folder / "raw", shape_of(options))
    with stages.stage("imports"):
        import datasets

        import hf_xmc
        from hf_xmc.encoders.static import static_embedding
    datasets.disable_progress_bars()
    with stages.stage("load_lf", lambda: size_of(folder / "cache")):
        data = hf_xmc.load_lf(folder / "raw", cache_dir=folder / "cache")
    with stages.stage("static table"):
        texts = (text for part in (data.train, data.labels) for text in part["text"])
        encoder = hf_xmc.XMCEncoder(modules=[static_embedding(texts)], device="cpu")
    encoder.add_classifier(data.num_labels, None, residual=True)
    with stages.stage("trainer"):
        arguments = hf_xmc.XMCTrainingArguments(str(folder / "run"), max_steps=options.max_steps, **SETTINGS)
        loss = hf_xmc.losses.UnifiedLoss(encoder, scale=12)
        trainer: Any = hf_xmc.XMCTrainer(encoder, arguments, data, loss)
    with stages.stage("tokens, train"):
        trainer.train()
        steps = trainer.state.global_step
    with stages.stage(f"trainer gone, {steps:,} steps"):
        del trainer, loss
    with stages.stage("encode labels"):
        halves = encoder.label_halves(data.label_texts)
    del halves
    with stages.stage("retriever"):
        retriever = hf_xmc.Retriever.build(encoder, data.label_texts, index=options.index)
    with stages.stage(f"index {retriever.index.kind}"):
        retriever.index.build()
    with stages.stage("save", lambda: size_of(folder / "model")):
        retriever.save_pretrained(folder / "model")
    queries = data.test["text"][: options.num_predicted]
    (folder / "queries.json").write_text(json.dumps(queries))


def serve(folder: Path, options: argparse.Namespace) -> None:
    """What a saved retriever costs who has nothing else."""
    stages, queries = Stages(), json.loads((folder / "queries.json").read_text())
    with stages.stage("imports, to serve"):
        import hf_xmc
    with stages.stage("open"):
        retriever = hf_xmc.Retriever.from_pretrained(folder / "model", device="cpu")
    with stages.stage("first answer"):
        retriever.predict(queries[0], 5)
    with stages.stage("one query", times=NUM_QUERIES):
        for query in queries[:NUM_QUERIES]:
            retriever.predict(query, 5)
    with stages.stage(f"one of {NUM_QUERIES} queries", times=NUM_QUERIES):
        retriever.predict(queries[:NUM_QUERIES], 5)
    new = [f"{query} {place}" for place, query in enumerate(queries[: NUM_NEW + 1])]
    for name, texts in (("add a label", new[:1]), (f"add {len(new) - 1:,} labels", new[1:])):
        with stages.stage(name):
            retriever.add_labels(texts)
    with stages.stage(f"predict {len(queries):,} rows", lambda: size_of(folder / "predicted")):
        retriever.predict_to_parquet(queries, folder / "predicted", 5, show_progress_bar=False)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--max_steps", type=int, default=-1, help="fewer than an epoch has")
    parser.add_argument("--index", default="auto")
    parser.add_argument("--num_predicted", type=int, default=10_000)
    parser.add_argument("--work", type=Path, help="a folder that is kept; by default one that is deleted")
    parser.add_argument("--part", choices=["build", "serve"], help=argparse.SUPPRESS)
    add_shape(parser)
    add_output(parser)
    options = parser.parse_args()
    if options.part:
        (build if options.part == "build" else serve)(options.work, options)
        return
    shape = shape_of(options)
    table = Table(
        f"The whole path at {shape.num_labels:,} labels",
        {"stage": "", "CPU s": ".3f", "peak GiB": ".2f", "held GiB": ".2f", "MiB on disk": ",.0f"},
        about=f"{shape.num_rows:,} rows of {shape.labels_per_row} labels; one thread, memory of the whole process.",
    )
    with tempfile.TemporaryDirectory() as scratch:
        folder = options.work or Path(scratch)
        for part in ("build", "serve"):
            command = [
                sys.executable,
                "-m",
                "benchmarks.speed.scale",
                *sys.argv[1:],
                "--part",
                part,
                "--work",
                str(folder),
            ]
            with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
                for line in process.stdout or ():
                    if line.startswith('{"stage"'):
                        table.add(*json.loads(line)["stage"])
            if process.returncode:
                raise SystemExit(f"{part} failed")
    write(options.output, table)


if __name__ == "__main__":
    main()
