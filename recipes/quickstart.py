"""Raw LF files in, an answering pipeline out, in a few minutes on two CPU cores.

    accelerate launch recipes/quickstart.py [--data_dir DIR] [--output_dir DIR] [field=value ...]

Trains a small pretrained encoder with decoupled softmax over the in-batch pool, chooses the epoch on a held-out part
of train, looks at the test split once, and asks the saved pipeline three questions.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from accelerate import PartialState

import hf_xmc
from hf_xmc.baselines import tfidf_knn, tfidf_zero_shot
from hf_xmc.recipe_config import read_recipe_config
from hf_xmc.run_record import RunRecord, metrics_table

HERE = Path(__file__).parent
COLUMNS = ("precision@1", "precision@3", "precision@5", "ndcg@5", "psp@1", "psp@5", "recall@10", "recall@100")


@dataclass
class Quickstart:
    """The recipe's own fields; everything else is a field of XMCTrainingArguments."""

    data_dir: str = str(HERE / "data" / "lf-gutenberg-science-tiny")
    fields: list[str] = field(default_factory=lambda: ["title"])
    encoder: str = "minilm"
    max_seq_length: int = 64
    scale: float = 20.0
    hold_out: float = 0.1


# 1. Settings: the YAML beside this file, then the command line.
config, args = read_recipe_config(Quickstart, __doc__)
record = RunRecord(asdict(config) | args.to_dict())
state = PartialState()

# 2. Data: the raw folder, and a validation split of its own that no title of train stands in.
data = hf_xmc.load_lf(config.data_dir, fields=tuple(config.fields), label_fields=tuple(config.fields))
development = data.hold_out(config.hold_out, seed=args.seed, seen_labels_only=True)
state.print(data)

# 3. What has to be beaten.
encoder = hf_xmc.XMCEncoder(hf_xmc.minilm_path() if config.encoder == "minilm" else config.encoder)
encoder.max_seq_length = config.max_seq_length
test = hf_xmc.XMCEvaluator(data, name="test", show_progress_bar=state.is_main_process)
table = {}
if state.is_main_process:
    with record.timed("baselines"):
        table["TF-IDF zero-shot"] = test.metrics(tfidf_zero_shot(data))
        table["TF-IDF kNN"] = test.metrics(tfidf_knn(data))
        table["encoder, zero-shot"] = test.metrics(test.predict(encoder)[0])

# 4. Training; the best epoch on the held-out part is the one that is kept.
trainer = hf_xmc.XMCTrainer(
    model=encoder,
    args=args,
    train_dataset=development,
    loss=hf_xmc.losses.DecoupledSoftmaxLoss(encoder, scale=config.scale),
    evaluator=hf_xmc.XMCEvaluator(development, name="held_out"),
)
with record.timed("training"):
    trainer.train()

# 5. One look at the test split, and one file with everything that was measured.
if state.is_main_process:
    retriever = hf_xmc.Retriever.build(encoder, data.labels["text"], show_progress_bar=True)
    table["encoder, trained"] = test.metrics(test.predict(encoder)[0])
    output = Path(args.output_dir)
    retriever.save_pretrained(output)
    record.metrics = table
    record.write(output / "metrics.json", table["encoder, trained"])
    print(f"\n{data.name}, test split, percent\n{metrics_table(table, COLUMNS)}\n")
    spent = record.seconds["training"]
    print(f"training {spent['wall']:.0f} s, {spent['cpu']:.0f} CPU s; saved to {output}\n")

    # 6. The saved pipeline answers.
    retrieve = hf_xmc.pipeline("xmc-retrieval", model=str(output), device=str(encoder.device))
    for text in data.test["text"][:3]:
        print(text)
        for answer in retrieve(text, top_k=3):
            print(f"    {answer['score']:.3f}  {answer['label']}")
