"""Raw LF files -> XMCDataset, and back.

Both formats of the Extreme Classification Repository and its users are read: JSON lines (`trn.json.gz`,
`tst.json.gz`, `lbl.json.gz`) and one text a line with a truth matrix (`trn_X.txt`, `Y.txt`, `trn_X_Y.txt` or
`Y.trn.npz`). Tables lie memory-mapped in the cache of `datasets`, under a key that changes with every file (size,
time of change), with the fields, and with this module's version.
"""

from __future__ import annotations

import gzip
import json
import os
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets.builder import Key
from datasets.data_files import DataFilesDict, DataFilesList
from datasets.exceptions import DatasetGenerationError
from huggingface_hub import file_exists

from hf_xmc.data.catalog import FILTER_FILES, JSON_FILES, Benchmark, Propensity, find_benchmark
from hf_xmc.data.dataset import NO_PAIRS, SPLITS, XMCDataset
from hf_xmc.data.lf_files import LFFiles, find_files, is_hub_id, locate
from hf_xmc.data.lf_read import (
    bad_line,
    check_targets,
    first_record,
    join_fields,
    num_lines,
    read_filter_pairs,
    read_json,
    read_texts,
    read_truth,
)
from hf_xmc.data.storage import SIDE_FILE, pairs_as_text

_STRING = datasets.Value("string")
_IDS, _WEIGHTS = datasets.List(datasets.Value("int32")), datasets.List(datasets.Value("float32"))


@dataclass
class LFConfig(datasets.BuilderConfig):
    """How to read the files of one config.

    Attributes:
        fields: raw fields whose values make the text, joined by a space.
        num_labels: L, the bound of the label ids; unused for the labels themselves.
        has_uid: whether the records carry a `uid`.
    """

    version: str = "1.0.0"  # raise it with every change of what is written, so that old caches are not read
    fields: tuple[str, ...] = ("title",)
    num_labels: int = 0
    has_uid: bool = False


class LFBuilder(datasets.ArrowBasedBuilder):
    """Reads raw LF files block by block; config "default" for the points, "labels" for the labels.

    `data_files` maps each split to its files: one JSON file, or a text file followed by its truth matrix.
    """

    BUILDER_CONFIG_CLASS = LFConfig
    BUILDER_CONFIGS = [LFConfig(name="default"), LFConfig(name="labels")]

    def _info(self) -> datasets.DatasetInfo:
        features = {"text": _STRING}
        if self.config.name == "default":
            features |= {"label_ids": _IDS, "label_weights": _WEIGHTS}
            if len(self.config.fields) > 1:
                features["title"] = _STRING
        if self.config.has_uid:
            features["uid"] = _STRING
        return datasets.DatasetInfo(features=datasets.Features(features))

    def _split_generators(self, dl_manager: datasets.DownloadManager) -> list[datasets.SplitGenerator]:
        # A list would count as shards, each read on its own.
        return [
            datasets.SplitGenerator(name=split, gen_kwargs={"files": tuple(files)})
            for split, files in self.config.data_files.items()
        ]

    def _generate_tables(self, files: tuple[str, ...]) -> Iterator[tuple[Key, pa.Table]]:
        names = self.info.features.arrow_schema.names
        for block, columns in enumerate(self._read_json(files[0]) if is_json(files[0]) else self._read_texts(*files)):
            yield Key(0, block), pa.table(columns).select(names).cast(self.info.features.arrow_schema)

    def _read_json(self, path: str) -> Iterator[dict[str, pa.Array]]:
        fields = dict.fromkeys(self.config.fields, pa.string()) | {"uid": pa.string()}
        if points := self.config.name == "default":
            fields |= {"target_ind": pa.list_(pa.int32()), "target_rel": pa.list_(pa.float32())}
        seen, uids = set(), []
        for first, table in read_json(path, pa.schema(fields)):
            seen |= {name for name in table.column_names if table.column(name).null_count < len(table)}
            uids += table.column("uid").chunks
            columns = {"text": join_fields(table, self.config.fields), "uid": join_fields(table, ["uid"])}
            if points:
                columns["title"] = join_fields(table, self.config.fields[:1])
                columns["label_ids"], columns["label_weights"] = check_targets(
                    path, first, table, self.config.num_labels
                )
            yield columns
        if not uids:
            raise ValueError(f"{path} holds no line")
        for wanted in (self.config.fields, ("target_ind",)) if points else (self.config.fields,):
            if not seen & set(wanted):
                raise bad_line(path, 1, f"neither this line nor any other has {' or '.join(wanted)}", wanted[0])
        _check_unique(path, pa.chunked_array(uids))

    def _read_texts(self, path: str, truth_path: str | None = None) -> Iterator[dict[str, pa.Array]]:
        if self.config.fields[0] != "title":
            raise ValueError(f"{path} has one text a line, read as the field 'title'; fields is {self.config.fields}")
        truth = read_truth(truth_path) if truth_path else None
        if truth and truth.num_labels != self.config.num_labels:
            raise bad_line(
                truth_path,
                1,
                f"the matrix has {truth.num_labels} columns, the label file {self.config.num_labels} lines",
            )
        row = 0
        for _, texts in read_texts(path):
            columns = {"text": texts, "title": texts}
            if truth:
                if row + len(texts) > truth.num_rows:
                    told = f"{truth_path} has {truth.num_rows} rows, none for this text (a line break inside a text?)"
                    raise bad_line(path, truth.num_rows + 1, told)
                columns["label_ids"], columns["label_weights"] = truth.lists(row, row + len(texts))
            row += len(texts)
            yield columns
        if not row:
            raise ValueError(f"{path} holds no line")
        if truth and row < truth.num_rows:
            raise bad_line(path, row, f"the file ends here; {truth_path} has {truth.num_rows} rows")


def _check_unique(path: str, uids: pa.ChunkedArray) -> None:
    given = uids.filter(pc.not_equal(uids, ""))
    if pc.count_distinct(given).as_py() == len(given):
        return
    counts = given.value_counts()
    twice = counts.filter(pc.greater(counts.field("counts"), 1))[0]["values"]
    lines = [line for line, equal in enumerate(pc.equal(uids, twice), 1) if equal.as_py()]
    raise bad_line(path, lines[1], f"uid {twice.as_py()!r} stands in line {lines[0]} already", "uid")


def is_json(path: str | Path) -> bool:
    """Whether a raw file holds JSON lines rather than one text a line."""
    return str(path).removesuffix(".gz").endswith(".json")


def load_lf(
    folder: str | Path,
    *,
    fields: Sequence[str] = ("title",),
    label_fields: Sequence[str] = ("title",),
    name: str | None = None,
    cache_dir: str | Path | None = None,
) -> XMCDataset:
    """Loads a data set in either raw LF format.

    Args:
        folder: a folder, an archive (.zip, .tar.gz), or the id of a Hub data set that holds raw files or that
            `XMCDataset.push_to_hub` made (then its texts are as they were pushed).
        fields: raw fields that make a query text, joined by a space; a missing one reads as "". Text files have only
            a "title".
        label_fields: the same for the labels.
        name: key in `hf_xmc.data.catalog.BENCHMARKS`, in any letter case, or a name of your own; the folder's name by
            default. A benchmark's counts are checked, and its propensity constants used; other sets get A 0.55 and B
            1.5.
        cache_dir: where the tables are kept; the cache of `datasets` by default. A second load only maps them into
            memory.

    Returns:
        An XMCDataset in the order of the files: row r is line r + 1, label id l is line l + 1 of the label file.

    Raises:
        ValueError: files are missing or damaged, a line is wrong (file, line and field are named), or the counts are
        not those of the
            benchmark of that name. Nothing is left in the cache.
    """
    fields, label_fields = _checked_fields(fields, "fields"), _checked_fields(label_fields, "label_fields")
    name = name or _stem(folder)
    benchmark = find_benchmark(name)
    if is_hub_id(folder) and file_exists(folder, SIDE_FILE, repo_type="dataset"):
        dataset = XMCDataset.from_hub(folder, cache_dir=cache_dir)
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
    """The rows of one split as they are read, with `label_weights` and without a cache; see `load_lf`."""
    if split not in SPLITS:
        raise ValueError(f"There is no split {split!r}; expected 'train' or 'test'")
    files = find_files(locate(folder))
    num_labels = num_lines(files.labels[0])
    return _builder("default", files, _checked_fields(fields, "fields"), num_labels=num_labels).as_streaming_dataset(
        split
    )


def save_lf(dataset: XMCDataset, folder: str | Path) -> None:
    """Writes the raw JSON format, which `load_lf` reads back to equal rows, ids, weights and filter pairs.

    The files appear in `folder` when all of them are complete; `text` is written as `title`, and what follows the
    title as `content` where the data set keeps titles apart.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as half_made:
        for file, table in zip(JSON_FILES, (dataset.train, dataset.test, dataset.labels), strict=True):
            with gzip.open(Path(half_made, file), "wt", encoding="utf-8", compresslevel=6) as lines:
                lines.writelines(json.dumps(record, ensure_ascii=False) + "\n" for record in _records(table))
        for file, split in zip(FILTER_FILES, SPLITS, strict=True):
            Path(half_made, file).write_bytes(pairs_as_text(dataset.filters[split]))
        for file in (*JSON_FILES, *FILTER_FILES):
            Path(half_made, file).replace(folder / file)


def _records(table: datasets.Dataset) -> Iterator[dict[str, object]]:
    for row in table:
        record = {"uid": row["uid"]} if "uid" in row else {}
        record["title"] = row["text"]
        if title := row.get("title"):
            record |= {"title": title, "content": row["text"].removeprefix(title).removeprefix(" ")}
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
    name = Path(os.path.abspath(source)).name
    return name.removesuffix(".gz").removesuffix(".tgz").removesuffix(".tar").removesuffix(".zip")


def _builder(
    config: str, files: LFFiles, fields: tuple[str, ...], *, num_labels: int = 0, cache_dir: str | Path | None = None
) -> LFBuilder:
    splits = {"train": files.labels} if config == "labels" else {"train": files.train, "test": files.test}
    data_files = DataFilesDict(
        {split: DataFilesList(map(str, paths), [_state(path) for path in paths]) for split, paths in splits.items()}
    )
    has_uid = all(is_json(paths[0]) and "uid" in first_record(paths[0]) for paths in splits.values())
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
    return builder.as_dataset()


def _all_ones(split: datasets.Dataset) -> bool:
    limits = (pc.min_max(chunk.flatten()) for chunk in split.data.column("label_weights").chunks)
    return all(limit[end].as_py() in (None, 1.0) for limit in limits for end in ("min", "max"))
