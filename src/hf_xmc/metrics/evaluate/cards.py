"""What a published module has beside its script: the card, the page and what to install."""

from __future__ import annotations

import ast
from dataclasses import dataclass
from pathlib import Path

PAGE = '''"""The page of this Space."""

from __future__ import annotations

from pathlib import Path

from hf_xmc.metrics.evaluate.space import build_page

build_page(Path(__file__).parent).launch()
'''

CARD = """---
title: {name}
emoji: 🎯
colorFrom: blue
colorTo: green
sdk: gradio
app_file: app.py
pinned: false
license: apache-2.0
tags:
- evaluate
- metric
description: >-
  {summary}
---

# {name}

{summary}

{details}

Definitions, ties, pads and empty rows are those of `hf_xmc.metrics.functional`, which computes the values:
`pip install hf_xmc[evaluate]`.

## How to use

```python
import evaluate

metric = evaluate.load("{name}")  # this folder, or "<owner>/{name}" for the Space
results = metric.compute({arguments})
assert {check}
```

`predictions` holds label ids, best first, in ragged lists or padded with -1; `references` holds lists of label ids.
Values are in [0, 1]. `metric.inputs_description` lists all arguments.

## Limits

Predicted ids must be distinct within a row. Break ties before (score descending, then label id ascending), and remove
filtered pairs from the predictions, rather than lowering their score: `hf_xmc.metrics.top_k` and `drop_pairs` do both.

## Citation

The metrics follow Jain, Prabhu, Varma: *Extreme Multi-label Loss Functions for Recommendation, Tagging, Ranking and
Other Missing Label Applications*, KDD 2016, and the Extreme Classification Repository.
"""

ROUNDED = "{key: round(value, 4) for key, value in results.items()} == "


@dataclass(frozen=True)
class Details:
    """What the card of one module says beyond the first line of its script.

    Attributes:
        text: What the values are.
        check: What holds of the card's example, an expression over ``results``.
        with_propensities: Whether the example has inverse propensities.
    """

    text: str
    check: str
    with_propensities: bool = False


DETAILS = {
    "xmc": Details(
        "Precision, nDCG, recall, coverage and macro-F1 at every cut-off, and with inverse propensities psp and "
        "psndcg too. Macro-F1 is the mean over all labels of 2 tp / (2 tp + fp + fn) of the top-k lists, 0/0 being 0; "
        "pass `num_labels` if the last labels occur nowhere, and `skip_absent=True` to average over labels with a "
        "reference only.",
        'len(results) == 14 and results["precision@1"] == 1.0 and round(results["macro_f1@2"], 4) == 0.5556',
        with_propensities=True,
    ),
    "xmc_coverage": Details(
        "Labels that are a hit in the top k of some row / labels that are a reference of some row.",
        ROUNDED + '{"coverage@1": 0.6667, "coverage@2": 0.6667}',
    ),
    "xmc_ndcg": Details(
        "Sum of 1 / log2(place + 1) over the hits, divided by that of min(k, number of references) hits in a row; the "
        "mean over rows. A row without references counts as 0.",
        ROUNDED + '{"ndcg@1": 1.0, "ndcg@2": 0.8066}',
    ),
    "xmc_precision": Details(
        "Hits in the top k / k, the mean over rows. Missing places are misses: the divisor stays k.",
        ROUNDED + '{"precision@1": 1.0, "precision@2": 0.5}',
    ),
    "xmc_psp": Details(
        "Sum of the inverse propensities of the hits, divided by the largest such sum that k places allow: a ratio "
        "of two sums over all rows, not a mean of ratios. PSnDCG has the discount of nDCG in both sums.\n\n"
        "The inverse propensity of a label with n of N train rows is `1 + (ln N - 1) (b + 1)^a (n + b)^(-a)`. `a` "
        "and `b` belong to the data set (0.6, 2.6 for LF-AmazonTitles, 0.5, 0.4 for Wikipedia-500K, 0.55, 1.5 "
        "otherwise) and papers differ in them: print them beside the value.",
        ROUNDED + '{\n    "psp@1": 1.0,\n    "psp@2": 0.7143,\n    "psndcg@1": 1.0,\n    "psndcg@2": 0.8169,\n}',
        with_propensities=True,
    ),
    "xmc_recall": Details(
        "Hits in the top k / number of references, the mean over rows. A row without references counts as 0, unless "
        "`skip_empty=True` leaves it out.",
        ROUNDED + '{"recall@1": 0.75, "recall@2": 0.75}',
    ),
}


def render_files(script: Path) -> dict[str, str]:
    """File name -> content of all that a module's Space holds beside its script."""
    details = DETAILS[script.stem]
    arguments = "predictions=[[2, 1, -1], [1]], references=[[0, 2], [1]], k=(1, 2)"
    if details.with_propensities:
        arguments = f"\n    {arguments}, inverse_propensities=[2, 1, 4]\n"
    card = CARD.format(
        name=script.stem,
        summary=ast.get_docstring(ast.parse(script.read_text(encoding="utf8"))),
        details=details.text,
        arguments=arguments,
        check=details.check,
    )
    return {"README.md": card, "app.py": PAGE, "requirements.txt": "hf_xmc[evaluate]\n"}
