"""Raw LF files in, an answering pipeline out, in a few minutes on two CPU cores.

    accelerate launch recipes/quickstart.py [--data_dir DIR] [--output_dir DIR] [field=value ...]

Trains a small pretrained encoder with decoupled softmax over the in-batch pool, chooses the epoch on a held-out part
of train, looks at the test split once, and asks the saved pipeline three questions.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import hf_xmc
from hf_xmc.encoders.start import start_encoder
from hf_xmc.runs.baselines import tfidf_knn, tfidf_zero_shot
from hf_xmc.runs.record import metrics_table
from hf_xmc.runs.run import EncoderFields, Run

CONFIG = Path(__file__).parent / "configs" / "lf-gutenberg-science-tiny" / "quickstart.yaml"
COLUMNS = ("precision@1", "precision@3", "precision@5", "ndcg@5", "psp@1", "psp@5", "recall@10", "recall@100")


@dataclass
class Quickstart(EncoderFields):
    """The recipe's own fields; everything else is a field of XMCTrainingArguments."""

    encoder: str = "minilm"
    scale: float = 20.0


def main(argv: Sequence[str] | None = None) -> None:
    """Run the recipe with a command line, the process's own where none is given."""
    # 1. Settings and data: the YAML, then the command line; a held-out part that no title of the rest stands in.
    run = Run(Quickstart, __file__, __doc__, argv, CONFIG)
    config, data, record = run.config, run.data, run.record
    development = data.hold_out(config.hold_out, seed=run.args.seed, answerable_only=True)
    run.state.print(data)

    # 2. What has to be beaten.
    encoder = start_encoder(config.encoder, development, max_seq_length=config.max_seq_length)
    test = hf_xmc.XMCEvaluator(data, name="test", show_progress_bar=run.is_main)
    table = {}
    if run.is_main:
        with record.timed("baselines"):
            table["TF-IDF zero-shot"] = record.test("TF-IDF zero-shot", test, tfidf_zero_shot(data))
            table["TF-IDF kNN"] = record.test("TF-IDF kNN", test, tfidf_knn(data))
            table["encoder, zero-shot"] = record.test("encoder, zero-shot", test, test.predict(encoder)[0])

    # 3. Training; the best epoch on the held-out part is the one that is kept.
    trainer = hf_xmc.XMCTrainer(
        model=encoder,
        args=run.args,
        train_dataset=development,
        loss=hf_xmc.losses.DecoupledSoftmaxLoss(encoder, scale=config.scale),
        evaluator=hf_xmc.XMCEvaluator(development, name="held_out"),
    )
    with record.timed("training"):
        trainer.train()

    # 4. One look at the test split, and one file with everything that was measured.
    if run.is_main:
        retriever = hf_xmc.Retriever.build(encoder, data.labels["text"], show_progress_bar=True)
        table["encoder, trained"] = record.test("encoder, trained", test, test.predict(encoder)[0])
        run.save(retriever, table["encoder, trained"], "Decoupled softmax")
        print(f"\n{data.name}, test split, percent\n{metrics_table(table, COLUMNS)}\n")
        spent = record.seconds["training"]
        print(f"training {spent['wall']:.0f} s, {spent['cpu']:.0f} CPU s; saved to {run.output}\n")

        # 5. The saved pipeline answers.
        retrieve = hf_xmc.pipeline("xmc-retrieval", model=str(run.output), device=str(encoder.device))
        for text in data.test["text"][:3]:
            print(text)
            for answer in retrieve(text, top_k=3):
                print(f"    {answer['score']:.3f}  {answer['label']}")


if __name__ == "__main__":
    main()
