"""Rankings of any number of texts in Parquet files, in bounded memory, resumable."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterable, Mapping, Sequence, Sized
from itertools import count, islice
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from tqdm.auto import tqdm

from hf_xmc.hub.answers_xmc import Ranking
from hf_xmc.hub.checks_xmc import checked_source, checked_texts
from hf_xmc.hub.filters_xmc import is_integer
from hf_xmc.hub.whole_xmc import clear_left, scratch_name
from hf_xmc.retriever.files import RetrieverParts

MADE_WITH_FILE = "_predicted_by.json"
_TEXTS_KEY = b"hf_xmc.texts"


def predict_to_parquet(
    rank: Callable[[list[str]], Ranking],
    texts: Iterable[str],
    folder: Path,
    labels: Sequence[str],
    *,
    made_with: Mapping[str, Any],
    rows_per_file: int,
    show_progress_bar: bool,
) -> Path:
    """See :meth:`hf_xmc.Retriever.predict_to_parquet`.

    Args:
        rank: Answers a list of texts.
        texts: Read once, from the start, also when work is resumed.
        folder: Made where it is missing.
        labels: L label texts in id order.
        made_with: What decides the answers; a folder that was made with anything else is refused.
        rows_per_file: Texts of a file, at least 1.
        show_progress_bar: Whether texts are counted.
    """
    if isinstance(texts, str):  # perhaps the name of a file
        raise ValueError(f"texts must be a list, an iterator or a column of texts, got one str {texts!r:.80}")
    texts = checked_source(texts)
    if not is_integer(rows_per_file) or rows_per_file < 1:
        raise ValueError(f"rows_per_file must be an integer of at least 1, got {rows_per_file!r}")
    made_with = {"rows_per_file": rows_per_file} | dict(made_with)
    total = len(texts) if isinstance(texts, Sized) else None
    source = iter(texts)

    def read(number: int) -> list[str]:
        return checked_texts(list(islice(source, rows_per_file)), number * rows_per_file)

    first = read(0)  # before anything is written
    folder.mkdir(parents=True, exist_ok=True)
    _check_made_with({name: _plain(value) for name, value in made_with.items()}, folder)
    with tqdm(total=total, unit="text", disable=not show_progress_bar) as bar:
        for number in count():
            part = read(number) if number else first
            file = folder / f"part-{number:05d}.parquet"
            if not part and number:
                break
            if file.exists():
                _check_texts(file, part)
            else:
                _write(file, _table(rank(part), number * rows_per_file, labels, digest(*part)))
            bar.update(len(part))
            if not part:
                return folder
    if file.exists():
        raise ValueError(f"{file} is of an earlier call with more texts; delete it, or give another folder")
    return folder


def digest(*parts: str | np.ndarray) -> str:
    """A SHA-256 of texts and arrays in their order."""
    whole = hashlib.sha256()
    for part in parts:
        content = part.encode("utf8") if isinstance(part, str) else np.ascontiguousarray(part).data
        whole.update(f"{len(part)} ".encode())
        whole.update(content)
    return whole.hexdigest()


def _plain(value: Any) -> Any:
    """What JSON can hold, and gives back the same."""
    if isinstance(value, np.ndarray):
        return digest(value)
    return value if isinstance(value, str | int | float | bool | None) else repr(value)


def _check_made_with(made_with: dict[str, Any], folder: Path) -> None:
    file = folder / MADE_WITH_FILE
    if not file.exists():
        if found := sorted(folder.glob("part-*.parquet")):
            raise ValueError(f"{folder} holds {found[0].name} but no {MADE_WITH_FILE}; give another folder")
        scratch = folder / scratch_name(file)
        scratch.write_text(json.dumps(made_with, indent=2), encoding="utf8")
        os.replace(scratch, file)
        return
    try:
        before = json.loads(file.read_text(encoding="utf8"))
    except ValueError as error:
        raise ValueError(f"{file} is damaged ({error}); give another folder") from error
    differing = sorted(name for name in before.keys() | made_with.keys() if before.get(name) != made_with.get(name))
    if differing:
        told = ", ".join(f"{name}: {before.get(name)!r} there, {made_with.get(name)!r} now" for name in differing)
        raise ValueError(f"{folder} holds predictions made otherwise ({told}); give another folder, or delete it")


def _check_texts(file: Path, texts: list[str]) -> None:
    try:
        stored = (pq.read_schema(file).metadata or {}).get(_TEXTS_KEY, b"").decode()
    except pa.ArrowException as error:
        raise ValueError(f"{file} is damaged ({error}); delete it and call again") from error
    if stored != digest(*texts):
        raise ValueError(f"{file} was made of other texts; give those texts again, or another folder")


def _table(ranking: Ranking, first: int, labels: Sequence[str], texts_digest: str) -> pa.Table:
    present = ranking.ids >= 0
    ends = pa.array(np.concatenate([[0], np.cumsum(present.sum(1))]).astype(np.int32))
    ids = ranking.ids[present]
    columns = {
        "row": pa.array(np.arange(first, first + len(ranking.ids))),
        "label_ids": pa.ListArray.from_arrays(ends, pa.array(ids)),
        "labels": pa.ListArray.from_arrays(ends, pa.array([labels[i] for i in ids.tolist()], pa.string())),
        "scores": pa.ListArray.from_arrays(ends, pa.array(ranking.scores[present])),
    }
    if ranking.probabilities is not None:
        columns["probabilities"] = pa.ListArray.from_arrays(ends, pa.array(ranking.probabilities[present]))
    return pa.table(columns).replace_schema_metadata({_TEXTS_KEY: texts_digest})


def _write(file: Path, table: pa.Table) -> None:
    """All of it or nothing, also where the machine stops."""
    clear_left(file)
    scratch = file.with_name(scratch_name(file))
    with open(scratch, "wb") as opened:
        with pq.ParquetWriter(opened, table.schema) as writer:
            if len(table):  # datasets cannot read a row group without rows
                writer.write_table(table)
        opened.flush()
        os.fsync(opened.fileno())
    os.replace(scratch, file)


def fingerprint(parts: RetrieverParts) -> dict[str, Any]:
    """What decides the answers of a retriever, as digests."""
    index = parts.index
    model: list[Any] = [index.vectors, index.alive, repr(parts.encoder.search_form), index.kind]
    if parts.memory is not None:
        rows = parts.memory.parts
        model += [rows.keys.stored, rows.indptr, rows.indices, rows.votes, repr(rows.form)]
    if parts.ranker is not None:
        network, promise = parts.ranker.network, parts.ranker.promise
        model += [network.hidden, network.out, promise.thresholds, parts.ranker.counts]
    if parts.calibration is not None:
        model.append(repr(parts.calibration.calibration))
    return {"model": digest(*model), "labels": digest(*parts.labels)}
