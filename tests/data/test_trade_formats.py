"""The files of Annif, PECOS, SKOS vocabularies and Excel, made anew with rows of our own."""

from __future__ import annotations

import csv
import datetime
import gzip
import json
import sys
from pathlib import Path

import pytest

from hf_xmc.data import XMCDataset, read_skos

BASE = "http://www.example.org/finds/"
LABELS = {"p10": "amphoras", "p11": "burial mounds", "p2": "coins (hoards)", "p30": "Iron Age", "p31": "pits, kilns"}
SUBJECTS = {BASE + code: label for code, label in LABELS.items()}
DOCUMENTS = [
    ('"A hoard of silver" and other finds', ["p2", "p30"]),
    ("Mounds of the river valley; a survey, 1903-1911", ["p11"]),
    ("Keramik – Fundstücke aus Köln", ["p10", "p30", "p2"]),
    ("Nothing was found", []),
]
DOCUMENTS = [(text, [BASE + code for code in codes]) for text, codes in DOCUMENTS]


def write_corpus(folder: Path) -> dict[str, Path]:
    """The four layouts of a corpus, and the three of a vocabulary, with the same rows."""
    uris = [" ".join(f"<{uri}>" for uri in uris) for _, uris in DOCUMENTS]
    paths = {kind: folder / f"documents.{kind}" for kind in ("tsv", "tsv.gz", "csv", "jsonl")}
    lines = "".join(f"{text}\t{cell}\n" for (text, _), cell in zip(DOCUMENTS, uris, strict=True))
    paths["tsv"].write_text(lines, encoding="utf8")
    paths["tsv.gz"].write_bytes(gzip.compress(lines.encode()))
    with paths["csv"].open("w", newline="", encoding="utf8") as file:
        rows = ((text, cell) for (text, _), cell in zip(DOCUMENTS, uris, strict=True))
        csv.writer(file).writerows([("text", "subject_uris"), *rows])
    records = [
        {"text": text, "metadata": {"id": row}, "subjects": [{"uri": uri, "label": SUBJECTS[uri]} for uri in own]}
        for row, (text, own) in enumerate(DOCUMENTS)
    ]
    paths["jsonl"].write_text("".join(json.dumps(record) + "\n" for record in records))
    vocabulary = {kind: folder / f"subjects.{kind}" for kind in ("tsv", "csv", "ttl")}
    vocabulary["tsv"].write_text("".join(f"<{uri}>\t{label}\n" for uri, label in SUBJECTS.items()))
    with vocabulary["csv"].open("w", newline="") as file:
        csv.writer(file).writerows([("uri", "label"), *SUBJECTS.items()])
    concepts = [f'<{uri}> a skos:Concept ; skos:prefLabel "{label}"@en .\n' for uri, label in SUBJECTS.items()]
    vocabulary["ttl"].write_text("@prefix skos: <http://www.w3.org/2004/02/skos/core#> .\n" + "".join(concepts[::-1]))
    return paths | {f"subjects.{kind}": path for kind, path in vocabulary.items()}


def as_lists(dataset: XMCDataset) -> dict:
    uids = dataset.labels["uid"][:]
    rows = [(row["text"], [uids[id] for id in row["label_ids"]]) for row in dataset.train]
    return {"rows": rows, "labels": list(zip(uids, dataset.label_texts.to_pylist(), strict=True))}


WHOLE = {"rows": DOCUMENTS, "labels": list(SUBJECTS.items())}


@pytest.mark.parametrize("vocabulary", ["tsv", "csv", "ttl"])
@pytest.mark.parametrize(
    ("kind", "arguments"),
    [
        ("tsv", {"labels": "labels"}),
        ("tsv", {"labels": "subjects", "separator": " "}),
        ("tsv.gz", {"labels": "labels"}),
        ("csv", {"labels": "subject_uris", "separator": " "}),
        ("jsonl", {"labels": "subjects"}),
    ],
)
def test_every_layout_of_a_corpus_gives_the_same_data_set(tmp_path, kind, arguments, vocabulary):
    if vocabulary == "ttl":
        pytest.importorskip("rdflib")
    paths = write_corpus(tmp_path)
    made = XMCDataset.from_dataset(paths[kind], text="text", label_texts=paths[f"subjects.{vocabulary}"], **arguments)
    assert as_lists(made) == WHOLE


def test_subjects_without_a_vocabulary_bring_their_labels(tmp_path):
    paths = write_corpus(tmp_path)
    named = XMCDataset.from_dataset(paths["jsonl"], text="text", labels="subjects")
    bare = XMCDataset.from_dataset(paths["tsv"], text="text", labels="labels")
    used = sorted({uri for _, uris in DOCUMENTS for uri in uris})
    assert as_lists(named) == {"rows": DOCUMENTS, "labels": [(uri, SUBJECTS[uri]) for uri in used]}
    assert as_lists(bare) == {"rows": DOCUMENTS, "labels": [(uri, uri) for uri in used]}


def test_subjects_may_lack_their_label_or_their_uri(tmp_path):
    path = tmp_path / "t.jsonl"
    subjects = [[{"uri": "u:1"}, {"uri": "u:2", "label": "two"}], [{"uri": "u:1", "label": "one"}, {"label": "three"}]]
    path.write_text("".join(json.dumps({"text": "a", "subjects": row}) + "\n" for row in subjects))
    made = XMCDataset.from_dataset(path, text="text", labels="subjects")
    assert as_lists(made)["labels"] == [("three", "three"), ("u:1", "one"), ("u:2", "two")]
    assert made.train["label_ids"][:] == [[1, 2], [1, 0]]


def test_one_unknown_subject_is_counted_and_left_out(tmp_path):
    paths = write_corpus(tmp_path)
    with paths["tsv"].open("a", encoding="utf8") as file:
        file.write(f"One more\t<{BASE}gone> <{BASE}p2>\n")
    arguments = {"text": "text", "labels": "labels", "label_texts": paths["subjects.tsv"]}
    with pytest.raises(ValueError, match="train, row 4: label 'http://www.example.org/finds/gone' is not among the 5"):
        XMCDataset.from_dataset(paths["tsv"], **arguments)
    with pytest.warns(UserWarning, match="nor are 0 other entries .1 labels in all.; they are left out"):
        made = XMCDataset.from_dataset(paths["tsv"], unseen="drop", **arguments)
    assert as_lists(made)["rows"] == [*DOCUMENTS, ("One more", [f"{BASE}p2"])]


def test_a_line_of_another_layout_is_refused_by_its_number(tmp_path):
    paths = write_corpus(tmp_path)
    with paths["tsv"].open("a", encoding="utf8") as file:
        file.write("".join(f"text {number}\t<u:1>\n" for number in range(200)) + "a line without a tab\n")
    with pytest.raises(ValueError, match=r"documents.tsv, line 205: 'a line without a tab' is not of the form"):
        XMCDataset.from_dataset(paths["tsv"], text="text", labels="labels")


def test_a_header_is_a_header_even_where_it_might_be_a_row(tmp_path):
    path = tmp_path / "t.tsv"
    path.write_text("u:text\tu:labels\na\tu:1\n")
    made = XMCDataset.from_dataset(path, text="u:text", labels="u:labels")
    assert as_lists(made) == {"rows": [("a", ["u:1"])], "labels": [("u:1", "u:1")]}


def test_text2text_files_of_pecos_are_read(tmp_path):
    (tmp_path / "training-data.txt").write_text('0,2\tTuring, A.\ttabs stay\n1\t"Hinton\n\tno label\n')
    (tmp_path / "output-labels.txt").write_text("Artificial intelligence\nBritish, and more\nComputability\n")
    made = XMCDataset.from_dataset(
        tmp_path / "training-data.txt", text="text", labels="labels", label_texts=tmp_path / "output-labels.txt"
    )
    assert made.train["text"][:] == ["Turing, A.\ttabs stay", '"Hinton', "no label"]
    assert made.train["label_ids"][:] == [[0, 2], [1], []]
    assert made.label_texts.to_pylist() == ["Artificial intelligence", "British, and more", "Computability"]


SKOS = """@prefix skos: <http://www.w3.org/2004/02/skos/core#> .
@prefix : <http://x.org/> .
:b a skos:Concept ; skos:prefLabel "dogs"@en, "koirat"@fi ; skos:altLabel "hounds"@en, "canines"@en, "hauvat"@fi .
:a a skos:Concept ; skos:prefLabel "cats"@en, "kissat"@fi ; skos:notation "599.75" .
:c a skos:Concept ; skos:prefLabel "linnut"@fi .
:d a skos:Collection ; skos:prefLabel "animals"@en .
"""


@pytest.fixture
def vocabulary(tmp_path) -> Path:
    pytest.importorskip("rdflib")
    (tmp_path / "v.ttl").write_text(SKOS)
    return tmp_path / "v.ttl"


@pytest.mark.parametrize("form", ["ttl", "rdf", "nt", "ttl.gz"])
def test_vocabularies_are_read_in_their_language(vocabulary, form):
    import rdflib

    path = vocabulary.with_suffix(f".{form}")
    if form == "ttl.gz":
        path.write_bytes(gzip.compress(vocabulary.read_bytes()))
    else:
        format = {"ttl": "turtle", "rdf": "xml", "nt": "nt"}[form]
        rdflib.Graph().parse(vocabulary).serialize(path, format=format)
    finnish = read_skos(path, "FI")
    assert finnish["uid"][:] == ["http://x.org/a", "http://x.org/b", "http://x.org/c"]
    assert finnish["text"][:] == ["kissat", "koirat", "linnut"] and finnish["alternatives"][:] == [[], ["hauvat"], []]
    with pytest.warns(UserWarning, match="1 of 3 concepts have no preferred label in 'en', such as http://x.org/c"):
        english = read_skos(path, "en")
    assert english["text"][:] == ["cats", "dogs", "linnut"]
    assert english["alternatives"][:] == [[], ["canines", "hounds"], []]


def test_a_language_is_asked_for_where_there_are_several(vocabulary):
    for path in (vocabulary, str(vocabulary)):
        with pytest.raises(ValueError, match=r"of several languages: fi \(3\), en \(2\); choose one: label_texts="):
            read_skos(path)
    with pytest.raises(ValueError, match="none of them 'sv'"):
        read_skos(vocabulary, "sv")


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("v.ttl", "no Turtle", "v.ttl cannot be read as turtle"),
        ("v.rdf", "<rdf", "v.rdf cannot be read as xml"),
        ("v.ttl.gz", "x", "v.ttl.gz cannot be read as turtle"),
        ("v.ttl", "", "holds no skos:Concept with a skos:prefLabel"),
        ("v.jsonld", "{}", "v.jsonld ends in none of .ttl, .rdf"),
    ],
)
def test_what_is_no_vocabulary_is_refused(tmp_path, name, content, message):
    pytest.importorskip("rdflib")
    (tmp_path / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        read_skos(tmp_path / name)


def workbook(path: Path, rows: list[list], formats: dict[str, str] | None = None, sheets: int = 1) -> Path:
    openpyxl = pytest.importorskip("openpyxl")
    book = openpyxl.Workbook()
    for row in rows:
        book.active.append(row)
    for cell, format in (formats or {}).items():
        book.active[cell].number_format = format
    for _ in range(1, sheets):
        book.create_sheet()
    book.save(path)
    return path


def test_a_workbook_is_read_cell_by_cell(tmp_path):
    rows = [
        ["text", None, "labels"],
        ["007", 1.5, "004"],
        [1984, None, 510],
        [None, None, None],
        ["NA", "x", "1.10|a"],
    ]
    with pytest.warns(UserWarning, match="t.xlsx has 2 sheets; 'Sheet' is read"):
        made = XMCDataset.from_dataset(
            workbook(tmp_path / "t.xlsx", rows, sheets=2), text="text", labels="labels", separator="|"
        )
    labels = [("004", "004"), ("1.10", "1.10"), ("510", "510"), ("a", "a")]
    assert as_lists(made) == {"rows": [("007", ["004"]), ("1984", ["510"]), ("NA", ["1.10", "a"])], "labels": labels}


@pytest.mark.parametrize(
    ("value", "format"),
    [(1.1, "0.00"), (4, "000"), (datetime.date(2020, 1, 1), "yyyy-mm-dd"), (True, "General"), ("#N/A", "General")],
)
def test_cells_whose_digits_excel_does_not_keep_are_refused_by_their_place(tmp_path, value, format):
    path = workbook(tmp_path / "t.xlsx", [["text", "labels"], ["a", "x"], ["b", value]], {"B3": format})
    with pytest.raises(ValueError, match="t.xlsx, cell B3: .* is no text; give the column the format Text"):
        XMCDataset.from_dataset(path, text="text", labels="labels")


def test_damaged_workbooks_are_refused(tmp_path):
    path = workbook(tmp_path / "t.xlsx", [["text", "labels"], ["a", "x"]])
    whole = path.read_bytes()
    renamed = whole.replace(b"sheet1.xml", b"sheet9.xml")
    for content in (b"", b"PK\x03\x04", whole[:500], whole[: len(whole) // 2], renamed):
        path.write_bytes(content)
        with pytest.raises(ValueError, match="t.xlsx is damaged, or no workbook"):
            XMCDataset.from_dataset(path, text="text", labels="labels")


@pytest.mark.parametrize(("name", "module", "extra"), [("t.xlsx", "openpyxl", "xlsx"), ("v.ttl", "rdflib", "skos")])
def test_a_missing_extra_names_itself(tmp_path, monkeypatch, name, module, extra):
    (tmp_path / name).write_text("")
    for part in (module, f"{module}.namespace"):
        monkeypatch.setitem(sys.modules, part, None)
    with pytest.raises(ImportError, match=rf"{module} is required: pip install hf_xmc\[{extra}\]"):
        if extra == "xlsx":
            XMCDataset.from_dataset(tmp_path / name, text="text", labels="labels")
        read_skos(tmp_path / name)
