"""The builder that keeps raw LF files as Arrow tables in the cache of ``datasets``, or streams them.

``datasets`` swaps ``open``, ``gzip``, ``os.path`` and ``Path`` in a builder's module, so nothing here touches a file
by itself.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import datasets
import pyarrow as pa
import pyarrow.compute as pc
from datasets.builder import Key

from hf_xmc.data.lf.json_lines import check_targets, join_fields, read_json
from hf_xmc.data.lf.read import bad_line, is_json, max_lines
from hf_xmc.data.lf.text_lines import read_texts, read_truth

_STRING = datasets.Value("string")
_IDS, _WEIGHTS = datasets.List(datasets.Value("int32")), datasets.List(datasets.Value("float32"))


@dataclass
class LFConfig(datasets.BuilderConfig):
    """How to read the files of one config.

    Attributes:
        fields: Raw fields whose values make the text, joined by a space.
        num_labels: L, the bound of the label ids; unused for the labels themselves.
        has_uid: Whether the records carry a ``uid``.
    """

    version: str = "1.1.0"  # raise it with every change of what is written, so that old caches are not read
    fields: tuple[str, ...] = ("title",)
    num_labels: int = 0
    has_uid: bool = False


class LFBuilder(datasets.ArrowBasedBuilder):
    """Read raw LF files block by block; config "default" for the points, "labels" for the labels.

    ``data_files`` maps each split to its files: one JSON file, or a text file followed by its truth matrix.
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
            datasets.SplitGenerator(name=split, gen_kwargs={"files": tuple(files), "needs_rows": split == "train"})
            for split, files in self.config.data_files.items()
        ]

    def _generate_tables(self, files: tuple[str, ...], needs_rows: bool) -> Iterator[tuple[Key, pa.Table]]:
        schema, block = self.info.features.arrow_schema, -1
        read = self._read_json(files[0], needs_rows) if is_json(files[0]) else self._read_texts(*files)
        for block, columns in enumerate(read):
            yield Key(0, block), pa.table(columns).select(schema.names).cast(schema)
        if block < 0 and needs_rows:
            raise ValueError(f"{files[0]} holds no line")
        if block < 0:
            yield Key(0, 0), schema.empty_table()

    def _read_json(self, path: str, needs_fields: bool) -> Iterator[dict[str, pa.Array]]:
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
            return
        # Test rows may lack a field that train rows have.
        for wanted in ([[name] for name in self.config.fields] if needs_fields else [self.config.fields]) + (
            [["target_ind"]] if points else []
        ):
            if not seen & set(wanted):
                raise bad_line(path, 1, f"neither this line nor any other has {' or '.join(wanted)}", wanted[0])
        _check_unique(path, pa.chunked_array(uids))

    def _read_texts(self, path: str, truth_path: str | None = None) -> Iterator[dict[str, pa.Array]]:
        if self.config.fields != ("title",):
            raise ValueError(f"{path} has one text a line, read as the field 'title'; fields is {self.config.fields}")
        truth = read_truth(truth_path, max_rows=max_lines(path)) if truth_path else None
        if truth and truth_path and truth.num_labels != self.config.num_labels:
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
