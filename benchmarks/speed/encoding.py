"""Titles encoded per CPU second: padded, sorted by length, packed; float32 and bfloat16; and a static table.

    python -m benchmarks.speed.encoding --data_dir DIR --output benchmarks/results/encoding.json
    python -m benchmarks.speed.encoding --quick           a few titles, to see that everything runs

all-MiniLM-L6-v2, one thread, CPU seconds, best of --repeats, forms interleaved, tokenization left out (it is the same
for all; the static encoder's figure includes it, as it is most of its work). Titles of the data set as they are, and
titles of exactly nine words, for which the targets are set; all cut to --cap tokens.
"""

from __future__ import annotations

import argparse
import random
import time
from collections.abc import Callable
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import hf_xmc
from benchmarks import TINY
from benchmarks.table import Table, add_output, write
from hf_xmc.encoders.packing import embed
from hf_xmc.encoders.static import static_embedding

Form = Callable[[], Tensor]
PACKED = "packed (ours)"


def padded(encoder: hf_xmc.XMCEncoder, feature: dict[str, Tensor], width: int) -> Tensor:
    more = width - feature["input_ids"].size(1)
    tokens = {k: F.pad(v, (0, more)) for k, v in feature.items() if isinstance(v, Tensor)}
    return encoder(tokens)["sentence_embedding"]


def sorted_by_length(encoder: hf_xmc.XMCEncoder, feature: dict[str, Tensor], size: int) -> Tensor:
    """Groups of like length, each padded to its longest, as the host's ``encode`` runs them."""
    lengths = feature["attention_mask"].sum(1)
    order = lengths.argsort()
    outs = []
    for rows in order.split(size):
        width = int(lengths[rows].max())
        tokens = {k: v[rows, :width] for k, v in feature.items() if isinstance(v, Tensor)}
        outs.append(encoder(tokens)["sentence_embedding"])
    return torch.cat(outs)[order.argsort()]


def forms(encoder: hf_xmc.XMCEncoder, texts: list[str], cap: int, batch: int) -> dict[str, Form]:
    """The texts in random order in batches of ``batch``, each form all of them."""
    features = [encoder.preprocess(texts[i : i + batch]) for i in range(0, len(texts), batch)]
    whole = encoder.preprocess(texts)

    def each(run: Callable[[dict[str, Tensor]], Tensor]) -> Form:
        return lambda: torch.cat([run(dict(feature)) for feature in features])

    return {
        f"padded to {cap}": each(lambda f: padded(encoder, f, cap)),
        "padded to the batch's longest": each(lambda f: encoder(f)["sentence_embedding"]),
        "sorted within the batch, groups of 16": each(lambda f: sorted_by_length(encoder, f, 16)),
        "all sorted, groups of 32 (host's encode)": lambda: sorted_by_length(encoder, whole, 32),
        PACKED: each(lambda f: embed(encoder, f)["sentence_embedding"]),
    }


def measure(found: dict[str, Form], train: bool, repeats: int) -> dict[str, float]:
    """CPU seconds of each form."""
    seconds = dict.fromkeys(found, float("inf"))
    for _ in range(repeats):
        for name, form in found.items():
            start = time.process_time()
            with nullcontext() if train else torch.inference_mode():
                vectors = form()
            if train:
                vectors.float().square().sum().backward()
            seconds[name] = min(seconds[name], time.process_time() - start)
    return seconds


def compare(table: Table, encoders: list[hf_xmc.XMCEncoder], name: str, texts: list[str], args: Any) -> None:
    encoder, half = encoders
    found = forms(encoder, texts, args.cap, args.batch)
    packed = found[PACKED]

    def autocast() -> Tensor:
        with torch.autocast("cpu", torch.bfloat16):
            return packed()

    found[f"{PACKED}, bfloat16 by autocast"] = autocast
    found[f"{PACKED}, bfloat16 weights"] = forms(half, texts, args.cap, args.batch)[PACKED]
    fill = int(encoder.preprocess(texts)["attention_mask"].sum()) / len(texts) / args.cap
    with torch.inference_mode():
        vectors = {form: run().float() for form, run in found.items()}
    first, reference = next(iter(vectors.items()))
    for train in (False, True):
        for model in encoders:
            model.train(train)
        seconds = measure(found, train, args.repeats)
        for form, value in seconds.items():
            cosine = None if train else float(F.cosine_similarity(vectors[form], reference).min())
            speed = len(texts) / value
            table.add(name, "training" if train else "inference", form, speed, seconds[first] / value, cosine, fill)
    for model in encoders:
        model.eval()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data_dir", type=Path, default=TINY)
    parser.add_argument("--texts", type=int, default=128)
    parser.add_argument("--batch", type=int, default=128)
    parser.add_argument("--cap", type=int, default=32)
    parser.add_argument("--repeats", type=int, default=2)
    parser.add_argument("--quick", action="store_true")
    add_output(parser)
    args = parser.parse_args()
    if args.quick:
        args.texts, args.repeats = 8, 1
    torch.set_num_threads(1)
    data = hf_xmc.load_lf(args.data_dir)
    titles = data.train["text"][:]
    rng = random.Random(0)
    protocols = {
        "titles": rng.sample(titles, args.texts),
        "9 words": rng.sample([" ".join(t.split()[:9]) for t in titles if len(t.split()) >= 9], args.texts),
    }
    columns = {"texts": "", "work": "", "form": "", "texts/s": ",.0f", "x padded": ".2f"}
    table = Table(
        "Encoding of titles by MiniLM-L6",
        columns | {"least cosine": ".4f", "fill": ".2f"},
        about="One thread, CPU seconds, without tokenization; training is forward and backward. The least cosine is "
        "to the padded float32 form; fill is the part of the padded tokens that are no pads.",
    )
    encoders = [hf_xmc.XMCEncoder(hf_xmc.minilm_path(), device="cpu").eval() for _ in range(2)]
    encoders[1].bfloat16()
    for encoder in encoders:
        encoder.max_seq_length = args.cap
    for name, texts in protocols.items():
        compare(table, encoders, name, texts, args)

    static = hf_xmc.XMCEncoder(modules=[static_embedding(titles + data.labels["text"][:])], device="cpu").eval()
    many = titles[: 200 if args.quick else 20_000]
    ready = static.preprocess(many)
    direct = Table(
        "Encoding of titles by a static table",
        {"form": "", "texts/s": ",.0f"},
        about="One thread, CPU seconds, 256 dimensions; batches of raw text.",
    )
    found: dict[str, Callable[[], object]] = {
        "host's encode": lambda: static.encode(many),
        "query_vectors": lambda: static.query_vectors(many),
        "query_vectors, one text a call": lambda: [static.query_vectors([text]) for text in many[:500]],
        "the table alone, tokens ready": lambda: static(dict(ready)),
    }
    best = dict.fromkeys(found, float("inf"))
    for _ in range(args.repeats):
        for name, run in found.items():
            start = time.process_time()
            with torch.inference_mode():
                run()
            best[name] = min(best[name], time.process_time() - start)
    for name, seconds in best.items():
        direct.add(name, (min(500, len(many)) if "one text" in name else len(many)) / seconds)
    write(args.output, table, direct)


if __name__ == "__main__":
    main()
