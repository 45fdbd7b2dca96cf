"""The hf-xmc command: arguments in, thin calls into the library, text out."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import Any

from hf_xmc.data.dataset import XMCDataset
from hf_xmc.data.lf.load import load_lf, save_lf
from hf_xmc.data.tables.skos import read_skos


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; a ValueError of the library becomes one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser(prog="hf-xmc", description="Extreme multi-label classification.")
    add_data_commands(parser.add_subparsers(required=True, metavar="command"))
    options = parser.parse_args(arguments)
    try:
        options.run(options)
    except ValueError as error:
        parser.exit(2, f"hf-xmc: {error}\n")
    return 0


def add_data_commands(commands: Any) -> None:
    """Add ``hf-xmc data report|convert|push`` to the subparsers."""
    data = commands.add_parser("data", help="look at, convert and publish data sets").add_subparsers(
        required=True, metavar="action"
    )
    source = argparse.ArgumentParser(add_help=False)
    source.add_argument("source", help="folder or archive in a raw LF format, Hub id, or a table given with --text")
    source.add_argument("--name", help="key of a known benchmark, or a name of your own")
    raw = source.add_argument_group("raw LF formats")
    raw.add_argument("--fields", nargs="+", default=["title"], help="raw fields of a query text (title [content])")
    raw.add_argument("--label-fields", nargs="+", default=["title"], help="raw fields of a label text")
    table = source.add_argument_group("a CSV, TSV, JSON lines, Parquet or Excel table")
    table.add_argument("--text", nargs="+", help="columns of the query text")
    table.add_argument("--labels", help="column of the labels")
    table.add_argument("--test", help="the test table")
    table.add_argument("--uid", help="column of the rows' own ids")
    table.add_argument("--separator", help="splits a cell into several labels")
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
    if options.text is None:
        dataset = load_lf(options.source, fields=options.fields, label_fields=options.label_fields, name=options.name)
    elif options.labels is None:
        raise ValueError("--text came without --labels; name the column of the labels, too")
    else:
        dataset = XMCDataset.from_dataset(
            options.source,
            text=options.text,
            labels=options.labels,
            label_texts=read_skos(options.label_texts, options.language) if options.language else options.label_texts,
            test=options.test,
            uid=options.uid,
            separator=options.separator,
            unseen="drop" if options.drop_unseen else None,
            name=options.name or "dataset",
        )
    return dataset.make_filters(by=options.filters_by) if options.filters_by else dataset


if __name__ == "__main__":
    raise SystemExit(main())
