"""Every cell of a text or label column is the string that stands in the file, in each format."""

from __future__ import annotations

import csv
import json
import random
import string
import warnings
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from hf_xmc.data import XMCDataset
from hf_xmc.data.lf import read
from hf_xmc.data.tables import text_lines

Rows = list[tuple[str, list[str]]]


def read_rows(source, split="train", **arguments) -> Rows:
    dataset = XMCDataset.from_dataset(source, **{"text": "text", "labels": "labels"} | arguments)
    names = dataset.label_texts.to_pylist()
    return [(row["text"], [names[id] for id in row["label_ids"]]) for row in dataset[split]]


def file_of(folder: Path, name: str, content: str | bytes) -> Path:
    (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)
    return folder / name


def write_csv(path: Path, rows: Rows) -> None:
    with path.open("w", newline="", encoding="utf8") as file:
        writer = csv.writer(file)
        writer.writerows([("text", "labels"), *((text, json.dumps(labels)) for text, labels in rows)])


def write_tsv(path: Path, rows: Rows) -> None:
    lines = [("text", "labels"), *((text, json.dumps(labels, ensure_ascii=False)) for text, labels in rows)]
    path.write_bytes("".join(f"{text}\t{labels}\n" for text, labels in lines).encode())


def write_jsonl(path: Path, rows: Rows) -> None:
    path.write_text("".join(json.dumps({"text": text, "labels": labels}) + "\n" for text, labels in rows))


def write_parquet(path: Path, rows: Rows) -> None:
    columns = {"text": [text for text, _ in rows], "labels": pa.array([labels for _, labels in rows], STRINGS)}
    pq.write_table(pa.table(columns), path)


def write_xlsx(path: Path, rows: Rows) -> None:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    book.active.append(["text", "labels"])
    for number, (text, labels) in enumerate(rows, 2):
        for column, value in enumerate((text, json.dumps(labels, ensure_ascii=False)), 1):
            book.active.cell(number, column).value = value
            book.active.cell(number, column).data_type = "s"  # or a text such as "=1" is a formula
    book.save(path)


STRINGS = pa.list_(pa.string())
WRITERS = {"csv": write_csv, "tsv": write_tsv, "jsonl": write_jsonl, "parquet": write_parquet, "xlsx": write_xlsx}

# What readers take for something else than the string that it is.
ODD_CELLS = """\
NA|N/A|#N/A|nan|NaN|None|null|NULL|<NA>|-|004|020|007|1.10|1.1|1e5|1E5|+3|-0|0x10|1_000|1,5|TRUE|True|false|inf|-inf
Infinity|2020-01-01|2020-01-01 00:00:00|2020-01-01T00:00:00Z|01/02/03|12:30|1h|"Hello world|"quoted" word|"whole"|""
"|'|it's|5" disk|a ""doubled"" word|\\n|\\t|\\|a\\"b| leading|trailing |  |=1+1|@x|#comment|;|,|a;b|a,b|<b>|[x]|{x}
(x)|[sic]|Ünï|日本|🙂|e\u0301|\u00a0|\u200b|\u2028|\u0085|\x1c|\ufeff|sep=;|text|labels|%|&amp;|_x000D_"""
ODD = ODD_CELLS.replace("\n", "|").split("|")


@pytest.mark.parametrize("form", ["csv", "tsv", "jsonl", "parquet"])
@pytest.mark.parametrize("odd", ODD)
def test_no_cell_is_taken_for_anything_but_its_string(tmp_path, form, odd):
    rows = [("a text", ["x"]), (odd, [odd, "y"]), ("no label", [])]
    WRITERS[form](tmp_path / f"t.{form}", rows)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*cells look quoted")
        assert read_rows(tmp_path / f"t.{form}") == rows


@pytest.mark.parametrize("form", ["csv", "tsv"])
@pytest.mark.parametrize("odd", [odd for odd in ODD if odd not in ("[x]", "{x}", "[sic]")])
def test_no_column_of_one_kind_of_cell_is_taken_for_anything_but_strings(tmp_path, form, odd):
    with (tmp_path / f"t.{form}").open("w", newline="", encoding="utf8") as file:
        if form == "csv":
            csv.writer(file).writerows([("text", "labels"), (odd, odd), (odd, odd)])
        else:
            file.write(f"text\tlabels\n{odd}\t{odd}\n{odd}\t{odd}\n")
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*cells look quoted")
        assert read_rows(tmp_path / f"t.{form}") == [(odd, [odd])] * 2


def test_words_for_nothing_are_labels_with_and_without_a_separator(tmp_path):
    path = file_of(tmp_path, "t.csv", "text,labels\nNamibia,NA\nnothing,None\nnull,x\nNA,NA|BW\n")
    assert read_rows(path) == [("Namibia", ["NA"]), ("nothing", ["None"]), ("null", ["x"]), ("NA", ["NA|BW"])]
    expected = [("Namibia", ["NA"]), ("nothing", ["None"]), ("null", ["x"]), ("NA", ["NA", "BW"])]
    assert read_rows(path, separator="|") == expected


def test_codes_and_versions_keep_their_zeros(tmp_path):
    path = file_of(tmp_path, "t.csv", "text,labels\ncomputers,004\n007,510\na,1.10\nb,1.1\n1e5,1e5\n")
    assert read_rows(path) == [
        ("computers", ["004"]),
        ("007", ["510"]),
        ("a", ["1.10"]),
        ("b", ["1.1"]),
        ("1e5", ["1e5"]),
    ]


def test_a_json_array_may_follow_an_empty_line(tmp_path):
    assert read_rows(file_of(tmp_path, "t.json", '\n[{"text": "a", "labels": ["x"]}]\n')) == [("a", ["x"])]


def test_labels_have_one_type_in_all_splits(tmp_path):
    train = file_of(tmp_path, "train.csv", "text,labels\na,1;2\nb,3\nc,\n")
    test = file_of(tmp_path, "test.csv", "text,labels\nd,1\ne,\n")
    assert read_rows(train, test=test, separator=";") == [("a", ["1", "2"]), ("b", ["3"]), ("c", [])]
    assert read_rows(train, "test", test=test, separator=";") == [("d", ["1"]), ("e", [])]


def test_a_line_of_tsv_is_a_row_whatever_quotation_marks_it_has(tmp_path):
    path = file_of(tmp_path, "t.tsv", 'text\tlabels\n"Hello world\ta\nse\rcond\tb\r\n"quoted" word\tc')
    assert read_rows(path) == [('"Hello world', ["a"]), ("se\rcond", ["b"]), ('"quoted" word', ["c"])]


def test_tsv_that_looks_quoted_is_told(tmp_path):
    path = file_of(tmp_path, "t.tsv", 'text\tlabels\n"He said ""no"""\tx\n')
    with pytest.warns(UserWarning, match="column 'text': 1 cells look quoted, such as .*TSV has no quoting"):
        assert read_rows(path) == [('"He said ""no"""', ["x"])]


def test_spaces_before_quotation_marks_within_quotes_are_part_of_the_cell(tmp_path):
    rows = [(' "x;y" ', [' "a"', " b"]), (' \n"x" ', ["c"]), (' "x', ["d"])]
    write_csv(tmp_path / "t.csv", rows)
    assert read_rows(tmp_path / "t.csv") == rows
    assert read_rows(file_of(tmp_path, "u.csv", 'text,labels\n "x,y\n')) == [(' "x', ["y"])]


def test_quoted_cells_of_csv_hold_line_ends_separators_and_marks(tmp_path):
    text = 'two\nlines, "marks"\r\nand a lone \r'
    path = tmp_path / "t.csv"
    write_csv(path, [(text, ["x"])])
    assert read_rows(path) == [(text, ["x"])]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize("separator", [",", ";", "\t", "|"])
@pytest.mark.parametrize("named", [False, True])
@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
def test_csv_of_spreadsheets_is_read(tmp_path, end, separator, encoding, named):
    lines = [
        *[f"sep={separator}"][:named],
        f"text{separator}labels",
        f"Café{separator}x/y",
        "",
        f'"a{separator}b"{separator}y',
        "",
    ]
    path = file_of(tmp_path, "t.csv", end.join(lines).encode(encoding))
    assert read_rows(path, separator="/") == [("Café", ["x", "y"]), (f"a{separator}b", ["y"])]


def test_windows_1252_is_read_and_told(tmp_path):
    path = file_of(tmp_path, "t.csv", "text;labels\nCafé – 5 €;x\n".encode("cp1252"))
    with pytest.warns(UserWarning, match="not UTF-8 and read as Windows-1252: line 2 is 'Café – 5 €;x'"):
        assert read_rows(path) == [("Café – 5 €", ["x"])]


def test_a_file_of_two_encodings_or_of_none_is_refused(tmp_path):
    both = "text,labels\nCafé,x\n".encode() + "Café,x\n".encode("cp1252")
    with pytest.raises(ValueError, match="t.csv, line 3: it is not UTF-8, though line 2 is"):
        read_rows(file_of(tmp_path, "t.csv", both))
    with pytest.raises(ValueError, match="t.tsv cannot be read: .*charmap"):
        read_rows(file_of(tmp_path, "t.tsv", b"text\tlabels\n\x81\x8d\tx\n"))


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("t.csv", "", "t.csv is empty; expected the names of columns, such as text, labels"),
        ("t.tsv", "", "t.tsv is empty"),
        ("t.csv", "\n\n", "t.csv is empty"),
        ("t.csv", "sep=;\ntext;labels\na\n", "t.csv, line 3: 1 cells"),
        ("t.csv", "text,labels\na,x\n".encode("utf-16-le"), "line 1: it seems to be UTF-16 without a byte-order mark"),
        ("t.tsv", "text\tlabels\na\tx\n".encode("utf-16-be"), "line 1: it seems to be UTF-16"),
        ("t.csv", "text,labels\na,x\nb\n", "t.csv, line 3: 1 cells; the header has 2"),
        ("t.csv", "text,labels\na,x\nb,y,z\n", "t.csv, line 3: 3 cells; the header has 2"),
        ("t.csv", "text,labels\na\rb,x\n", "t.csv, line 2: 1 cells"),
        ("t.csv", 'text,labels\n"a" b,x\n', "t.csv, line 2: .* write \"\" for a quotation mark"),
        ("t.csv", 'text,labels\nwar, "x;y"\n', "t.csv, line 2: .* has a space before its quotation mark; remove it"),
        ("t.csv", 'text, "labels"\nwar,x\n', "t.csv, line 1: .* has a space before"),
        ("t.csv", 'text,labels\n"a,x\nb,y\n', "t.csv, line 3: unexpected end of data"),
        ("t.csv", "text,labels,text\na,x,b\n", "several columns 'text'"),
        ("t.csv", "title, one;label\na;x\n", "can be cut at ',' and at ';'"),
        ("t.tsv", "text\tlabels\na\tx\ty\n", "t.tsv, line 2: 3 cells; the header has 2"),
        ("t.tsv", "a title\tx\nanother\ty\n", "has no column 'text'; it has .'a title', 'x'."),
        ("t.jsonl", "", "t.jsonl is empty; expected a JSON object a line"),
        ("t.jsonl", "\n\n", "t.jsonl is empty"),
        ("t.jsonl", '{"text": "a", "labels": "x"}\n{"text"\n', "t.jsonl, line 2: it is not JSON"),
        ("t.jsonl", '{"text": "a", "labels": "x"}\n3\n', "t.jsonl, line 2: it holds a int, 3; expected objects"),
        ("t.jsonl", "[" * 100_000, "t.jsonl, line 1: it is not JSON"),
        ("t.jsonl", '{"text": "a", "labels": "x"}\n{"text": 3, "labels": "x"}\n', "column 'text': .* all one type"),
        ("t.jsonl", '{"text": 1.10, "labels": "x"}\n', "column 'text' holds double, not text"),
        ("t.jsonl", '{"text": true, "labels": "x"}\n', "column 'text' holds bool, not text"),
        ("t.jsonl", '{"text": "\\ud800", "labels": "x"}\n', "column 'text': .*surrogates.* valid Unicode"),
        ("t.jsonl", '{"text": "a", "labels": 1180591620717411303424}\n', "column 'labels': .*too large"),
        ("t.jsonl", '{"text": "a"}\n', "has no column 'labels'; it has .'text'."),
        ("t.json", '[{"text": "a", "labels": "x"}, 3]', "line 1: it holds a int, 3"),
        ("t.parquet", "PAR1 no Parquet", "t.parquet is damaged, or no Parquet file"),
        ("t.csv.gz", "text,labels\n", "t.csv.gz cannot be read: Not a gzipped file"),
        ("t.csv", "text,labels\n", "train has no rows; it has the columns .'text', 'labels'."),
        ("t.csv", "text,labels\na,\n", "No row has a label"),
    ],
)  # fmt: skip
def test_files_that_cannot_be_read_are_refused(tmp_path, name, content, message):
    with pytest.raises(ValueError, match=message):
        read_rows(file_of(tmp_path, name, content))


def test_a_damaged_parquet_file_is_refused_or_read(tmp_path):
    write_parquet(tmp_path / "t.parquet", [("a text", ["x", "y"])] * 50)
    whole, rng = (tmp_path / "t.parquet").read_bytes(), random.Random(0)
    refused = 0
    for _ in range(100):
        content = bytearray(whole)
        content[rng.randrange(len(content))] ^= 1 << rng.randrange(8)
        try:
            read_rows(file_of(tmp_path, "u.parquet", bytes(content[: rng.choice([len(content), 500])])))
        except ValueError:
            refused += 1
    assert refused > 50


def test_a_header_alone_is_no_test_rows(tmp_path):
    train, test = (file_of(tmp_path, name, "text,labels\n" + row) for name, row in (("a.csv", "a,x\n"), ("b.csv", "")))
    assert read_rows(train, "test", test=test) == []


def test_a_line_past_all_measure_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(text_lines, "MAX_LINE_BYTES", 1000)
    for name in ("t.csv", "t.tsv", "t.jsonl"):
        path = file_of(tmp_path, name, "x\n" + "y" * 1001 + "\n")
        with pytest.raises(ValueError, match=f"{name}, line 2: the line is longer than"):
            read_rows(path)
    assert read.MAX_LINE_BYTES == 1 << 25


def test_a_cell_past_the_limit_of_the_csv_module_is_read_and_the_limit_kept(tmp_path):
    before = csv.field_size_limit()
    text = "word " * 100_000
    assert read_rows(file_of(tmp_path, "t.csv", f"text,labels\n{text},x\n")) == [(text, ["x"])]
    assert csv.field_size_limit() == before


def test_folders_and_files_of_any_name_are_read(tmp_path):
    folder = tmp_path / "my [data] *? {x}"
    folder.mkdir()
    for form in ("csv", "tsv", "jsonl", "parquet"):
        path = folder / f"t[1] train.{form}"
        WRITERS[form](path, [("a", ["x"])])
        assert read_rows(path) == read_rows(str(path)) == [("a", ["x"])]


def dicts(labels: pa.ListArray, kind: pa.DataType) -> pa.ListArray:
    """Lists of {"text": label} of a type of strings."""
    structs = pa.StructArray.from_arrays([labels.flatten().cast(kind)], ["text"])
    return pa.ListArray.from_arrays(labels.offsets, structs)


def test_types_of_parquet_and_arrow_columns_are_read_as_their_strings(tmp_path):
    texts = pa.array(["a", "b", None])
    labels = pa.array([["x"], [], ["y", "x"]])
    forms = {
        "large": (texts.cast(pa.large_string()), labels.cast(pa.large_list(pa.large_string()))),
        "view": (texts.cast(pa.string_view()), labels),
        "dictionary": (texts.dictionary_encode(), labels.cast(pa.list_(pa.dictionary(pa.int32(), pa.string())))),
        "binary": (texts.cast(pa.binary()), labels),
        "large binary": (texts.cast(pa.large_binary()), labels.cast(pa.list_(pa.binary()))),
        **{
            str(kind): (texts, dicts(labels, kind))
            for kind in (pa.large_string(), pa.large_binary(), pa.string_view())
        },
    }
    for text_column, label_column in forms.values():
        with pytest.warns(UserWarning, match="train: 1 of 3 rows have null for text, the first is row 2"):
            assert read_rows(pa.table({"text": text_column, "labels": label_column})) == [
                ("a", ["x"]), ("b", []), ("", ["y", "x"]),
            ]  # fmt: skip


@pytest.mark.parametrize(
    "column",
    [[1.5, 2.5], [True, False], pd.to_datetime(["2020-01-01", "2020-01-02"]), [1.0, np.nan], [["a"], ["b"]]],
)
def test_columns_that_are_no_text_are_refused_by_their_type(column):
    frame = pd.DataFrame({"text": column, "labels": ["x", "y"]})
    with pytest.raises(ValueError, match="train, column 'text' holds .*, not text; make it strings"):
        read_rows(frame)
    frame = pd.DataFrame({"text": ["a", "b"], "labels": ["x", "y"], "uid": column})
    with pytest.raises(ValueError, match="train, column 'uid' holds"):
        read_rows(frame, uid="uid")


def test_missing_texts_and_labels_are_counted():
    frame = pd.DataFrame({"text": ["a", None, None], "labels": ["x", None, "y"]})
    with pytest.warns(UserWarning) as told:
        assert read_rows(frame) == [("a", ["x"]), ("", []), ("", ["y"])]
    messages = sorted(str(warning.message) for warning in told)
    assert messages[0].startswith("train, column 'labels': 1 of 3 rows have null for labels, the first is row 1")
    assert messages[1].startswith("train: 2 of 3 rows have null for text, the first is row 1")


def test_unlabeled_class_labels_are_rows_without_a_label():
    names = datasets.ClassLabel(names=["no", "yes"])
    features = datasets.Features({"text": datasets.Value("string"), "labels": names})
    parts = {
        split: datasets.Dataset.from_dict({"text": ["a", "b"], "labels": labels}, features=features)
        for split, labels in {"train": [0, 1], "test": [-1, -1]}.items()
    }
    assert read_rows(parts) == [("a", ["no"]), ("b", ["yes"])]
    with pytest.warns(UserWarning, match="test, column 'labels': 2 of 2 rows have null for labels"):
        assert read_rows(parts, "test") == [("a", []), ("b", [])]
    listed = datasets.Features({"text": datasets.Value("string"), "labels": datasets.List(names)})
    several = datasets.Dataset.from_dict({"text": ["a"], "labels": [[1, 0]]}, features=listed)
    assert read_rows(several) == [("a", ["yes", "no"])]


def test_class_labels_within_dicts_are_their_names():
    kind = datasets.ClassLabel(names=["war", "sea"])
    features = datasets.Features({"text": datasets.Value("string"), "labels": [{"label": kind, "score": kind}]})
    cells = [[{"label": 1, "score": 0}, {"label": 0, "score": -1}], None, []]
    table = datasets.Dataset.from_dict({"text": ["a", "b", "c"], "labels": cells}, features=features)
    with pytest.warns(UserWarning, match="1 of 3 rows have null for labels"):
        assert read_rows(table) == [("a", ["sea", "war"]), ("b", []), ("c", [])]
    with pytest.warns(UserWarning, match="1 of 3 rows have null for labels"):
        assert read_rows(table.with_format("arrow")[:], label_texts=["x", "y"])[0] == ("a", ["y", "x"])


def nasty_rows(number: int, seed: int = 0) -> Rows:
    """Titles with odd marks, as a catalog of a library has them."""
    rng = random.Random(seed)
    marks = "\"'`´„“”«»‚‘’,;:|/\\()[]{}<>#%&=+-*@!?.0123456789"
    pieces = [*string.ascii_letters, *marks, *"äöåÄÖÅéßñøæœçšž日本語ёЖ🙂\u00a0 ", '""', "'s"]
    subjects = ["".join(rng.choices(pieces, k=rng.randint(1, 12))).strip() or "x" for _ in range(200)]

    def title() -> str:
        return "".join(rng.choices(pieces, k=rng.randint(1, 40)))

    return [(title(), list(dict.fromkeys(rng.choices(subjects, k=rng.randint(0, 4))))) for _ in range(number)]


@pytest.mark.parametrize("form", WRITERS)
def test_thousands_of_nasty_titles_come_back_row_for_row(tmp_path, form):
    rows = nasty_rows(4000)
    assert sum(text.count('"') % 2 for text, _ in rows) > 500
    WRITERS[form](tmp_path / f"t.{form}", rows)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*cells look quoted")
        assert read_rows(tmp_path / f"t.{form}") == rows


ANY = st.characters(exclude_categories=["Cs"])
LABELS = st.lists(st.text(ANY, min_size=1, max_size=8), max_size=3)
# XML holds no control characters, and Excel no line end but "\n".
PLAIN = st.text(st.characters(exclude_categories=["Cs", "Cc", "Co", "Cn"]), max_size=12)
ROWS = {
    "csv": st.text(ANY, max_size=12),
    "jsonl": st.text(ANY, max_size=12),
    "parquet": st.text(ANY, max_size=12),
    "tsv": st.text(st.characters(exclude_categories=["Cs"], exclude_characters="\t\n\r"), max_size=12),
    "xlsx": PLAIN,
}


@pytest.mark.filterwarnings("ignore::UserWarning")
@pytest.mark.parametrize("form", WRITERS)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_any_unicode_comes_back_from_any_format(tmp_path_factory, form, data):
    labels = st.lists(PLAIN.filter(bool), max_size=3) if form == "xlsx" else LABELS
    rows = data.draw(st.lists(st.tuples(ROWS[form], labels), max_size=6)) + [("last", ["label"])]
    path = tmp_path_factory.mktemp("any") / f"t.{form}"
    WRITERS[form](path, rows)
    assert read_rows(path) == rows
