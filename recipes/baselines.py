"""What a trained model must beat: TF-IDF look-ups and encoders that never saw the data set.

    accelerate launch recipes/baselines.py [--data_dir DIR] [--output_dir DIR] [field=value]

Nothing is trained and nothing is chosen, so there is no held-out part; the test split is looked at once. ``encoders``
are ``wordllama``, ``minilm``, or folders and Hub names of sentence-transformers models.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from sentence_transformers.sentence_transformer.modules import StaticEmbedding

import hf_xmc
from hf_xmc.encoders.start import start_encoder
from hf_xmc.runs.baselines import tfidf_knn, tfidf_zero_shot
from hf_xmc.runs.record import metrics_table
from hf_xmc.runs.run import DataFields, Run


@dataclass
class Baselines(DataFields):
    """The recipe's own fields; of XMCTrainingArguments it reads ``output_dir`` and the evaluation batch size."""

    encoders: list[str] = field(default_factory=lambda: ["wordllama", "minilm"])
    max_seq_length: int = 64


def load_encoder(run: Run[Baselines], name: str) -> hf_xmc.XMCEncoder:
    """The encoder as it comes."""
    if name == "wordllama":
        return hf_xmc.XMCEncoder(modules=[StaticEmbedding(*hf_xmc.wordllama_embedding())])
    return start_encoder(name, run.data, max_seq_length=run.config.max_seq_length)


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe with a command line, the process's own where none is given."""
    # 1. Settings and data: the YAML, then the command line.
    run = Run(Baselines, __file__, __doc__, argv)
    data, record = run.data, run.record
    run.state.print(data)
    if not run.is_main:
        return

    # 2. One look at the test split, and one file with everything that was measured.
    size = run.args.per_device_eval_batch_size
    test = hf_xmc.XMCEvaluator(data, name="test", batch_size=size, show_progress_bar=True)
    table = {}
    with record.timed("TF-IDF zero-shot"):
        table["TF-IDF zero-shot"] = record.test("TF-IDF zero-shot", test, tfidf_zero_shot(data))
    with record.timed("TF-IDF kNN"):
        table["TF-IDF kNN"] = record.test("TF-IDF kNN", test, tfidf_knn(data))
    for name in run.config.encoders:
        line = f"{name}, zero-shot"
        with record.timed(line):
            table[line] = record.test(line, test, test.predict(load_encoder(run, name))[0])
    best = max(table, key=lambda line: table[line]["precision@1"])
    record.write(run.output / "metrics.json", table[best])
    print(f"\n{data.name}, test split, percent\n{metrics_table(table)}\n\n{run.closing()}")


if __name__ == "__main__":
    main()
