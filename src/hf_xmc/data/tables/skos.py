"""SKOS vocabularies in Turtle, RDF/XML or N-Triples -> a table of concepts; needs rdflib."""

from __future__ import annotations

import gzip
import warnings
from collections import Counter
from pathlib import Path
from typing import Any

import datasets
import pyarrow as pa

FORMATS = {".ttl": "turtle", ".rdf": "xml", ".xml": "xml", ".nt": "nt"}


def read_skos(path: str | Path, language: str | None = None) -> datasets.Dataset:
    """The concepts of a vocabulary, to be given to :meth:`~hf_xmc.XMCDataset.from_dataset` as ``label_texts``.

    Args:
        path: A ``.ttl``, ``.rdf``, ``.xml`` or ``.nt`` file, perhaps with ``.gz``.
        language: Of the labels, such as "en"; None where the vocabulary has but one.

    Returns:
        A row a concept, by URI in ascending order: ``uid``, its URI; ``text``, its preferred label (the first in
        ascending order, were there several); ``alternatives``, its alternative labels in ascending order. A concept
        without a preferred label in the language has one of another language, which a warning counts.

    Raises:
        ValueError: If the file cannot be read, holds no concept, or has several languages or others than the one
            asked for.
    """
    path = Path(path).expanduser()
    try:
        from rdflib.namespace import RDF, SKOS
    except ImportError as error:
        raise ImportError("rdflib is required: pip install hf_xmc[skos]") from error
    graph = _parsed(path)
    concepts = sorted({str(concept): concept for concept in graph.subjects(RDF.type, SKOS.Concept)}.items())
    preferred = [sorted(graph.objects(concept, SKOS.prefLabel)) for _, concept in concepts]
    language = _checked_language(path, Counter(label.language for labels in preferred for label in labels), language)
    texts, others = [], []
    for (uri, _), labels in zip(concepts, preferred, strict=True):
        own = [str(label) for label in labels if label.language == language]
        if not own:
            others.append(uri)
        texts.append((own or [str(label) for label in labels] or [uri])[0])
    if others:
        told = (
            f"{len(others)} of {len(concepts)} concepts have no preferred label in {language!r}, such as {others[0]}"
        )
        warnings.warn(f"{path}: {told}; they keep a label of another language, or their URI", stacklevel=2)
    alternatives = [
        sorted(str(label) for label in graph.objects(concept, SKOS.altLabel) if label.language == language)
        for _, concept in concepts
    ]
    table = {"uid": [uri for uri, _ in concepts], "text": texts}
    columns = [pa.array(column, pa.string()) for column in table.values()]
    return datasets.Dataset(
        pa.table([*columns, pa.array(alternatives, pa.list_(pa.string()))], [*table, "alternatives"])
    )


def _parsed(path: Path) -> Any:
    import rdflib

    suffix = Path(path.name.removesuffix(".gz")).suffix
    if suffix not in FORMATS:
        raise ValueError(f"{path} ends in none of {', '.join(FORMATS)} (or those with .gz)")
    if not path.is_file():
        raise ValueError(f"{path} does not exist")
    graph: Any = rdflib.Graph()
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as file:
            graph.parse(file=file, format=FORMATS[suffix])
    except Exception as error:  # each of its parsers has its own
        raise ValueError(f"{path} cannot be read as {FORMATS[suffix]}: {error}") from error
    return graph


def _checked_language(path: Path, languages: Counter[str | None], language: str | None) -> str | None:
    told = ", ".join(f"{name or 'no language'} ({count})" for name, count in languages.most_common())
    if not languages:
        raise ValueError(f"{path} holds no skos:Concept with a skos:prefLabel")
    if language is None and len(languages) == 1:
        return next(iter(languages))
    language = language.lower() if language is not None else None
    if language is None or language not in languages:
        came = "of several languages" if language is None else f"none of them {language!r}"
        raise ValueError(f"{path} has labels {came}: {told}; choose one: label_texts=read_skos(path, language=...)")
    return language
