"""Raw LF files -> XMCDataset, and back.

Both formats of the Extreme Classification Repository and its users are read: JSON lines (``trn.json.gz``,
``tst.json.gz``, ``lbl.json.gz``) and one text a line with a truth matrix (``trn_X.txt``, ``Y.txt``, ``trn_X_Y.txt`` or
``Y.trn.npz``). Tables lie memory-mapped in the cache of ``datasets``, under a key that changes with every file (size,
time of change), with the fields, and with the version of ``LFConfig``.
"""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Iterator, Sequence
from pathlib import Path

import datasets
import pyarrow.compute as pc
from datasets.data_files import DataFilesDict, DataFilesList
from datasets.exceptions import DatasetGenerationError

from hf_xmc.data.catalog import FILTER_FILES, JSON_FILES, Benchmark, Propensity, check_name, find_benchmark
from hf_xmc.data.dataset import SPLITS, XMCDataset
from hf_xmc.data.lf.builder import LFBuilder
from hf_xmc.data.lf.files import LFFiles, find_files, is_hub_id, is_on_hub, locate
from hf_xmc.data.lf.pair_lines import read_filter_pairs
from hf_xmc.data.lf.read import first_record, is_json, num_lines
from hf_xmc.data.storage import SIDE_FILE, in_one_step, pairs_as_text
from hf_xmc.hub.filters_xmc import NO_PAIRS


def load_lf(
    folder: str | Path,
    *,
    fields: Sequence[str] = ("title",),
    label_fields: Sequence[str] = ("title",),
    name: str | None = None,
    cache_dir: str | Path | None = None,
) -> XMCDataset:
    """Load a data set in either raw LF format.

    Args:
        folder: A folder, an archive (.zip, .tar.gz), or the id of a Hub data set that holds raw files or that
            :meth:`~hf_xmc.XMCDataset.push_to_hub` made (then its texts are as they were pushed).
        fields: Raw fields that make a query text, joined by a space; a missing one reads as "". Text files have only
            a "title".
        label_fields: The same for the labels.
        name: Key in ``hf_xmc.data.catalog.BENCHMARKS``, in any letter case, or a name of your own; the folder's name
            by default, with "-" for characters that a repo of the Hub may not have. A benchmark's counts are checked,
            and its propensity constants used; other sets get A 0.55 and B 1.5.
        cache_dir: Where the tables are kept; the cache of ``datasets`` by default. A second load only maps them into
            memory.

    Returns:
        An XMCDataset in the order of the files: row r is line r + 1, label id l is line l + 1 of the label file.

    Raises:
        ValueError: If files are missing or damaged, a line is wrong (file, line and field are named), or the counts
            are not those of the benchmark of that name. A refused file leaves nothing in the cache.
    """
    fields, label_fields = _checked_fields(fields, "fields"), _checked_fields(label_fields, "label_fields")
    name = _stem(folder) if name is None else name
    check_name(name)
    benchmark = find_benchmark(name)
    if is_hub_id(folder) and is_on_hub(str(folder), SIDE_FILE):
        dataset = XMCDataset.from_hub(str(folder), cache_dir=cache_dir)
    else:
        files = find_files(locate(folder, cache_dir, benchmark), benchmark)
        dataset = _read(files, fields, label_fields, cache_dir, name, benchmark)
    if benchmark:
        counts = {"num_train": len(dataset.train), "num_test": len(dataset.test), "num_labels": dataset.num_labels}
        benchmark.check_counts(**counts)
    return dataset


def _read(
    files: LFFiles,
    fields: tuple[str, ...],
    label_fields: tuple[str, ...],
    cache_dir: str | Path | None,
    name: str,
    benchmark: Benchmark | None,
) -> XMCDataset:
    labels = _build(_builder("labels", files, label_fields, cache_dir=cache_dir))["train"]
    points = _build(_builder("default", files, fields, num_labels=len(labels), cache_dir=cache_dir))
    if all(_all_ones(split) for split in points.values()):
        points = points.remove_columns("label_weights")
    filters = {
        split: read_filter_pairs(path, len(points[split]), len(labels)) if path else NO_PAIRS
        for split, path in files.filters.items()
    }
    return XMCDataset(
        train=points["train"],
        test=points["test"],
        labels=labels,
        filters=filters,
        name=benchmark.name if benchmark else name,
        propensity=benchmark.propensity if benchmark else Propensity(),
    )


def stream_lf(folder: str | Path, split: str, *, fields: Sequence[str] = ("title",)) -> datasets.IterableDataset:
    """The rows of one split as they are read, with ``label_weights`` and without a cache; see :func:`load_lf`."""
    if split not in SPLITS:
        raise ValueError(f"There is no split {split!r}; expected 'train' or 'test'")
    files = find_files(locate(folder))
    num_labels = num_lines(files.labels[0])
    return _builder("default", files, _checked_fields(fields, "fields"), num_labels=num_labels).as_streaming_dataset(
        split
    )


def save_lf(dataset: XMCDataset, folder: str | Path) -> None:
    """Write the raw JSON format, which :func:`load_lf` reads back to equal rows, ids, weights and filter pairs.

    The files move to ``folder`` when all of them are complete, the label file last: a folder whose old files were
    replaced in part is refused. ``text`` is written as ``title``, and what follows the title as ``content`` where the
    data set keeps titles apart.
    """
    tables = dict(zip(JSON_FILES, (dataset.train, dataset.test, dataset.labels), strict=True))
    with in_one_step(folder, JSON_FILES[-1]) as half_made:
        for file, table in tables.items():
            with gzip.open(half_made / file, "wt", encoding="utf-8", compresslevel=6) as lines:
                lines.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in _records(table))
        for file, split in zip(FILTER_FILES, SPLITS, strict=True):
            (half_made / file).write_bytes(pairs_as_text(dataset.filters[split]))


def _records(table: datasets.Dataset) -> Iterator[dict[str, object]]:
    for row in table:
        record = {"uid": row["uid"]} if "uid" in row else {}
        record["title"] = row["text"]
        if "title" in row:
            content = row["text"].removeprefix(row["title"])
            record |= {"title": row["title"], "content": content.removeprefix(" ") if row["title"] else content}
        if "label_ids" in row:
            record["target_ind"] = row["label_ids"]
            record["target_rel"] = row.get("label_weights") or [1.0] * len(row["label_ids"])
        yield record


def _checked_fields(fields: Sequence[str], name: str) -> tuple[str, ...]:
    if isinstance(fields, str) or not fields:
        raise ValueError(
            f"{name} is {fields!r}; expected a tuple of field names like ('title',) or ('title', 'content')"
        )
    return tuple(fields)


def _stem(source: str | Path) -> str:
    name = Path(source).expanduser().absolute().name
    name = name.removesuffix(".gz").removesuffix(".tgz").removesuffix(".tar").removesuffix(".zip")
    return re.sub(r"[^\w.]+|\.\.+|--+", "-", name, flags=re.ASCII)[:96].strip("-.") or "dataset"


def _builder(
    config: str, files: LFFiles, fields: tuple[str, ...], *, num_labels: int = 0, cache_dir: str | Path | None = None
) -> LFBuilder:
    splits = {"train": files.labels} if config == "labels" else {"train": files.train, "test": files.test}
    data_files = DataFilesDict(
        {split: DataFilesList(map(str, paths), [_state(path) for path in paths]) for split, paths in splits.items()}
    )
    first = [first_record(paths[0]) if is_json(paths[0]) else {} for paths in splits.values()]
    has_uid = any(first) and all("uid" in record for record in first if record)  # a split may have no rows
    return LFBuilder(
        config_name=config,
        dataset_name="hf_xmc_lf",
        data_files=data_files,
        cache_dir=cache_dir and str(cache_dir),
        fields=fields,
        num_labels=num_labels,
        has_uid=has_uid,
    )


def _state(path: Path) -> tuple[str, ...]:
    stat = path.stat()
    return str(stat.st_size), str(stat.st_mtime_ns)


def _build(builder: LFBuilder) -> datasets.DatasetDict:
    try:
        builder.download_and_prepare()
    except DatasetGenerationError as error:
        if isinstance(error.__cause__, ValueError):
            raise error.__cause__ from None
        raise
    schema = builder.info.features.arrow_schema
    return datasets.DatasetDict(
        {
            split: builder.as_dataset(split) if info.num_examples else datasets.Dataset(schema.empty_table())
            for split, info in builder.info.splits.items()
        }
    )


def _all_ones(split: datasets.Dataset) -> bool:
    limits = (pc.min_max(chunk.flatten()) for chunk in split.data.column("label_weights").chunks)
    return all(limit[end].as_py() in (None, 1.0) for limit in limits for end in ("min", "max"))
