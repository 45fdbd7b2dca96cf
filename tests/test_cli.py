from __future__ import annotations

import json

import pytest
from toys import TINY

from hf_xmc.cli import main
from hf_xmc.data import load_lf


def test_report_prints_the_table_and_writes_json_and_png(capsys, tmp_path):
    assert (
        main(["data", "report", str(TINY), "--json", str(tmp_path / "r.json"), "--png", str(tmp_path / "r.png")]) == 0
    )
    assert "| num labels | 4,036 |" in capsys.readouterr().out
    assert json.loads((tmp_path / "r.json").read_text())["num_labels"] == 4036
    assert (tmp_path / "r.png").stat().st_size > 1000


def test_convert_makes_a_table_a_raw_folder(capsys, tmp_path):
    path = tmp_path / "drinks.csv"
    path.write_text("query,tags\nlatte,milk|coffee\nmilk,\n")
    options = ["--text", "query", "--labels", "tags", "--separator", "|", "--filters-by", "text", "--test", str(path)]
    assert main(["data", "convert", str(path), str(tmp_path / "raw"), *options]) == 0
    dataset = load_lf(tmp_path / "raw", cache_dir=tmp_path / "cache")
    assert dataset.label_texts.to_pylist() == ["coffee", "milk"] and dataset.train["label_ids"][:] == [[1, 0], []]
    assert dataset.filters["train"].tolist() == [[1, 1]]


def test_a_table_without_test_rows_is_converted_and_loaded(tmp_path):
    path = tmp_path / "drinks.csv"
    path.write_text("query;tags\nlatte;milk\nNA;004\n")
    assert main(["data", "convert", str(path), str(tmp_path / "raw"), "--text", "query", "--labels", "tags"]) == 0
    dataset = load_lf(tmp_path / "raw", cache_dir=tmp_path / "cache")
    assert dataset.label_texts.to_pylist() == ["004", "milk"] and dataset.train["text"][:] == ["latte", "NA"]
    assert len(dataset.test) == 0 and dataset.train["label_ids"][:] == [[1], [0]]


@pytest.mark.parametrize("language", [None, "fi"])
def test_labels_of_a_vocabulary_are_named_in_a_language(tmp_path, capsys, language):
    pytest.importorskip("rdflib")
    (tmp_path / "t.tsv").write_text("a title\t<u:1> <u:gone>\nanother\t<u:1>\n")
    concept = '<u:1> a skos:Concept ; skos:prefLabel "birds"@en, "linnut"@fi .'
    (tmp_path / "v.ttl").write_text(f"@prefix skos: <http://www.w3.org/2004/02/skos/core#> .\n{concept}\n")
    options = ["--text", "text", "--labels", "labels", "--label-texts", str(tmp_path / "v.ttl"), "--drop-unseen"]
    arguments = ["data", "convert", str(tmp_path / "t.tsv"), str(tmp_path / "raw"), *options]
    if language is None:
        with pytest.raises(SystemExit):
            main(arguments)
        assert "labels of several languages: en (1), fi (1); choose one" in capsys.readouterr().err
        return
    with pytest.warns(UserWarning, match="label 'u:gone' is not among the 1 label_texts"):
        assert main([*arguments, "--language", language]) == 0
    dataset = load_lf(tmp_path / "raw", cache_dir=tmp_path / "cache")
    assert dataset.label_texts.to_pylist() == ["linnut"] and dataset.train["label_ids"][:] == [[0], [0]]


TABLE = ["t.csv", "--text", "text", "--labels", "labels"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["report", "nowhere"], "nowhere does not exist"),
        (["report", "raw", "--separator", ";"], "--separator is for a table; name its columns by --text and --labels"),
        (["report", "raw", "--label-texts", "x", "--drop-unseen"], "--label-texts is for a table"),
        (["report", "raw", "--labels", "labels"], "--labels is for a table"),
        (["report", *TABLE, "--fields", "title"], "--fields is for a raw LF format"),
        (["report", "t.csv", "--text", "text"], "--text came without --labels"),
        (["report", *TABLE, "--language", "en"], "--language came without --label-texts"),
        (["report", *TABLE, "--json", "nowhere/r.json"], "No such file or directory: 'nowhere/r.json'"),
        (["report", *TABLE, "--png", "nowhere/r.png"], "No such file or directory: 'nowhere/r.png'"),
        (["convert", "t.csv", "t.csv", *TABLE[1:]], "File exists: 't.csv'"),
    ],
)
def test_an_error_is_one_line_and_exit_code_2(capsys, tmp_path, monkeypatch, arguments, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "t.csv").write_text("text,labels\nlatte,milk\n")
    with pytest.raises(SystemExit) as end:
        main(["data", *arguments])
    told = capsys.readouterr().err
    assert end.value.code == 2 and told.startswith("hf-xmc: ") and message in told and told.count("\n") == 1


def test_a_separator_may_be_a_tab(tmp_path, capsys):
    (tmp_path / "t.csv").write_text("text;labels\nlatte;milk\tcoffee\n")
    options = ["--text", "text", "--labels", "labels", "--separator", r"\t"]
    assert main(["data", "report", str(tmp_path / "t.csv"), *options]) == 0
    assert "| num labels | 2 |" in capsys.readouterr().out
