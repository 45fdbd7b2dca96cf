"""The hf-xmc command: arguments in, thin calls into the library, text out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from hf_xmc.data.dataset import XMCDataset
from hf_xmc.data.lf.load import load_lf, save_lf
from hf_xmc.data.tables.skos import read_skos


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; what the library or the system refuses becomes one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog="hf-xmc", description="Extreme multi-label classification.")
    add_data_commands(parser.add_subparsers(required=True, metavar="command"))
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except (ValueError, OSError, ImportError) as error:
        parser.exit(2, f"hf-xmc: {error}\n")
    return 0


_RAW_OPTIONS = ("fields", "label_fields")
_TABLE_OPTIONS = ("labels", "test", "uid", "separator", "label_texts", "language", "drop_unseen")


def add_data_commands(commands: Any) -> None:
    """Add ``hf-xmc data report|convert|push`` to the subparsers."""
    data = commands.add_parser("data", help="look at, convert and publish data sets").add_subparsers(
        required=True, metavar="action"
    )
    source = argparse.ArgumentParser(add_help=False)
    source.add_argument("source", help="folder or archive in a raw LF format, Hub id, or a table given with --text")
    source.add_argument("--name", help="key of a known benchmark, or a name of your own")
    raw = source.add_argument_group("raw LF formats")
    raw.add_argument("--fields", nargs="+", help="raw fields of a query text (title [content])")
    raw.add_argument("--label-fields", nargs="+", help="raw fields of a label text (title)")
    table = source.add_argument_group("a CSV, TSV, JSON lines, Parquet or Excel table")
    table.add_argument("--text", nargs="+", help="columns of the query text")
    table.add_argument("--labels", help="column of the labels")
    table.add_argument("--test", help="the test table")
    table.add_argument("--uid", help="column of the rows' own ids")
    table.add_argument("--separator", help="splits a cell into several labels; \\t is a tab")
    table.add_argument("--label-texts", help="file of all labels: a table with uid and text, texts, a map, or SKOS")
    table.add_argument("--language", help="of the label texts, where a SKOS vocabulary has several")
    table.add_argument(
        "--drop-unseen",
        action="store_true",
        help="leave out labels that --label-texts lacks, or in test that train lacks",
    )
    source.add_argument("--filters-by", choices=("uid", "text"), help="make filter pairs from equal uids or texts")

    report = data.add_parser("report", parents=[source], help="print counts, tails, duplicates and leaks")
    report.add_argument("--json", help="also write the figures here")
    report.add_argument("--png", help="also draw label frequency and labels per point here")
    report.set_defaults(run=_report)
    convert = data.add_parser("convert", parents=[source], help="write the raw JSON format")
    convert.add_argument("folder", help="to write trn.json.gz, tst.json.gz, lbl.json.gz and the filter files to")
    convert.set_defaults(run=_convert)
    push = data.add_parser("push", parents=[source], help="upload to the Hub")
    push.add_argument("repo_id", help="user/name")
    push.add_argument("--private", action="store_true")
    push.set_defaults(run=_push)


def _report(options: argparse.Namespace) -> None:
    report = _load(options).report()
    print(report)
    if options.json:
        report.to_json(options.json)
    if options.png:
        report.save_png(options.png)


def _convert(options: argparse.Namespace) -> None:
    dataset = _load(options)
    save_lf(dataset, options.folder)
    print(f"{dataset} -> {options.folder}")


def _push(options: argparse.Namespace) -> None:
    dataset = _load(options)
    url = dataset.push_to_hub(options.repo_id, private=options.private or None)
    print(f"{dataset} -> {url}")


def _load(options: argparse.Namespace) -> XMCDataset:
    given = {name: value for name, value in vars(options).items() if value not in (None, False)}
    wrong = [name for name in (_TABLE_OPTIONS if options.text is None else _RAW_OPTIONS) if name in given]
    if wrong:
        told = "is for a table; name its columns by --text and --labels"
        told = told if options.text is None else "is for a raw LF format, not for a table given with --text"
        raise ValueError(f"--{wrong[0].replace('_', '-')} {told}")
    if options.text is None:
        fields = {name: given[name] for name in _RAW_OPTIONS if name in given}
        dataset = load_lf(options.source, name=options.name, **fields)
    else:
        dataset = _load_table(options)
    return dataset.make_filters(by=options.filters_by) if options.filters_by else dataset


def _load_table(options: argparse.Namespace) -> XMCDataset:
    if options.labels is None:
        raise ValueError("--text came without --labels; name the column of the labels, too")
    if options.language and options.label_texts is None:
        raise ValueError("--language came without --label-texts; name the SKOS vocabulary, too")
    return XMCDataset.from_dataset(
        options.source,
        text=options.text,
        labels=options.labels,
        label_texts=read_skos(options.label_texts, options.language) if options.language else options.label_texts,
        test=options.test,
        uid=options.uid,
        separator=options.separator and options.separator.replace("\\t", "\t"),
        unseen="drop" if options.drop_unseen else None,
        name=options.name or "dataset",
    )


if __name__ == "__main__":
    raise SystemExit(main())
