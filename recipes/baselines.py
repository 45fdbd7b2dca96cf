"""What a trained model must beat: TF-IDF look-ups and encoders that never saw the data set.

    accelerate launch recipes/baselines.py [--data_dir DIR] [--output_dir DIR] [field=value]

Nothing is trained and nothing is chosen, so there is no held-out part; the test split is looked at once. ``encoders``
are ``wordllama``, ``minilm``, or folders and Hub names of sentence-transformers models.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from pathlib import Path

from accelerate import PartialState
from sentence_transformers.sentence_transformer.modules import StaticEmbedding

import hf_xmc
from hf_xmc.runs.baselines import tfidf_knn, tfidf_zero_shot
from hf_xmc.runs.config import load_data, read_recipe_config
from hf_xmc.runs.encoder import start_encoder
from hf_xmc.runs.record import RunRecord, metrics_table

HERE = Path(__file__).parent


@dataclass
class Baselines:
    """The recipe's own fields; of XMCTrainingArguments it reads ``output_dir`` and the evaluation batch size."""

    data_dir: str = str(HERE / "data" / "lf-gutenberg-science-tiny")
    fields: list[str] = field(default_factory=list)
    label_fields: list[str] = field(default_factory=list)
    num_neighbors: int = 20
    encoders: list[str] = field(default_factory=lambda: ["wordllama", "minilm"])
    max_seq_length: int = 64


# 1. Settings: the YAML, then the command line.
config, args = read_recipe_config(Baselines, __doc__, default=HERE / "configs" / "default" / "baselines.yaml")
record = RunRecord(asdict(config) | args.to_dict())
state = PartialState()

# 2. Data: the raw folder.
data, assumed = load_data(config.data_dir, config.fields, config.label_fields)
record.notes += assumed
record.describe(data, config.data_dir)
state.print(data)


# 3. Encoders as they come.
def load(name: str) -> hf_xmc.XMCEncoder:
    if name == "wordllama":
        return hf_xmc.XMCEncoder(modules=[StaticEmbedding(*hf_xmc.wordllama_embedding())])
    return start_encoder(name, data, max_seq_length=config.max_seq_length)


# 4. One look at the test split, and one file with everything that was measured.
if state.is_main_process:
    output = Path(args.output_dir)
    output.mkdir(parents=True, exist_ok=True)
    test = hf_xmc.XMCEvaluator(data, name="test", batch_size=args.per_device_eval_batch_size, show_progress_bar=True)
    table = {}
    with record.timed("TF-IDF zero-shot"):
        table["TF-IDF zero-shot"] = record.test("TF-IDF zero-shot", test, tfidf_zero_shot(data))
    with record.timed("TF-IDF kNN"):
        table["TF-IDF kNN"] = record.test("TF-IDF kNN", test, tfidf_knn(data, num_neighbors=config.num_neighbors))
    for name in config.encoders:
        line = f"{name}, zero-shot"
        with record.timed(line):
            table[line] = record.test(line, test, test.predict(load(name))[0])
    best = max(table, key=lambda line: table[line]["precision@1"])
    record.write(output / "metrics.json", table[best])
    print(f"\n{data.name}, test split, percent\n{metrics_table(table)}\n")
    print("\n".join(["assumed:"] * bool(record.notes) + record.notes))
