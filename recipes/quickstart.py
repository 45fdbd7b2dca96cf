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
from hf_xmc.runs.baselines import tfidf_knn, tfidf_zero_shot
from hf_xmc.runs.config import load_data, read_recipe_config
from hf_xmc.runs.encoder import start_encoder
from hf_xmc.runs.model_card import write_model_card
from hf_xmc.runs.record import RunRecord, metrics_table

HERE = Path(__file__).parent
COLUMNS = ("precision@1", "precision@3", "precision@5", "ndcg@5", "psp@1", "psp@5", "recall@10", "recall@100")


@dataclass
class Quickstart:
    """The recipe's own fields; everything else is a field of XMCTrainingArguments."""

    data_dir: str = str(HERE / "data" / "lf-gutenberg-science-tiny")
    fields: list[str] = field(default_factory=list)
    label_fields: list[str] = field(default_factory=list)
    encoder: str = "minilm"
    max_seq_length: int = 64
    scale: float = 20.0
    hold_out: float = 0.1


# 1. Settings: the YAML beside this file, then the command line.
default = HERE / "configs" / "lf-gutenberg-science-tiny" / "quickstart.yaml"
config, args = read_recipe_config(Quickstart, __doc__, default=default)
record = RunRecord(asdict(config) | args.to_dict())
state = PartialState()

# 2. Data: the raw folder, and a validation split of its own that no title of train stands in.
data, assumed = load_data(config.data_dir, config.fields, config.label_fields)
record.notes += assumed
record.describe(data, config.data_dir)
development = data.hold_out(config.hold_out, seed=args.seed, answerable_only=True)
state.print(data)

# 3. What has to be beaten.
encoder = start_encoder(config.encoder, development, max_seq_length=config.max_seq_length)
test = hf_xmc.XMCEvaluator(data, name="test", show_progress_bar=state.is_main_process)
table = {}
if state.is_main_process:
    with record.timed("baselines"):
        table["TF-IDF zero-shot"] = record.test("TF-IDF zero-shot", test, tfidf_zero_shot(data))
        table["TF-IDF kNN"] = record.test("TF-IDF kNN", test, tfidf_knn(data))
        table["encoder, zero-shot"] = record.test("encoder, zero-shot", test, test.predict(encoder)[0])

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
    table["encoder, trained"] = record.test("encoder, trained", test, test.predict(encoder)[0])
    output = Path(args.output_dir)
    retriever.save_pretrained(output)
    record.citations = list(encoder.model_card_data.citations.values())
    record.write(output / "metrics.json", table["encoder, trained"])
    write_model_card(output, "Decoupled softmax")
    print(f"\n{data.name}, test split, percent\n{metrics_table(table, COLUMNS)}\n")
    spent = record.seconds["training"]
    print(f"training {spent['wall']:.0f} s, {spent['cpu']:.0f} CPU s; saved to {output}\n")

    # 6. The saved pipeline answers.
    retrieve = hf_xmc.pipeline("xmc-retrieval", model=str(output), device=str(encoder.device))
    for text in data.test["text"][:3]:
        print(text)
        for answer in retrieve(text, top_k=3):
            print(f"    {answer['score']:.3f}  {answer['label']}")
