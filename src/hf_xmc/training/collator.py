"""Rows of an XMC data set -> one batch: queries, a pool of candidate labels, and who is relevant to whom."""

from __future__ import annotations

import logging
import zlib
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pyarrow as pa
import torch
from sentence_transformers.sentence_transformer.data_collator import SentenceTransformerDataCollator

from hf_xmc.distributed import PAD
from hf_xmc.encoders.tokens import TokenizedTexts
from hf_xmc.hub.checks_xmc import checked_texts
from hf_xmc.hub.filters_xmc import checked_ids
from hf_xmc.training.arguments import LEAST
from hf_xmc.training.checks import check_counts, column_prompts
from hf_xmc.training.rows import check_filters, checked_rows, checked_weights

logger = logging.getLogger(__name__)
# Task of a prompt -> column of a batch.
COLUMNS = {"query": "query", "document": "candidate"}


@dataclass
class XMCDataCollator(SentenceTransformerDataCollator):
    """Draw the candidate pool of a batch and tokenize queries and candidates.

    A batch holds, with B rows, C candidates, P and F the most positives and filter pairs of a row:

        =======================  ==============  ================================================================
        key                      shape, dtype    meaning
        =======================  ==============  ================================================================
        ``query_*``              (B, T)          tokens of the rows' texts
        ``candidate_*``          (C, T)          tokens of the candidates' label texts
        ``candidate_ids``        (C,) int64      label ids of the candidates, ascending, each once
        ``label``                (B, P) int64    **all** known positives of a row, sampled or not, padded with -1
        ``query_label_weights``  (B, P) float32  soft targets in (0, 1], where the rows have them; pads 0
        ``query_filter_ids``     (B, F) int64    labels that are neither positive nor negative, padded with -1
        =======================  ==============  ================================================================

    What is kept by row of the data set (filters, mined negatives, tokens) is looked up by a column ``row``, which
    ``data.training_rows()`` has: rows without it, such as those to evaluate on, are taken as they are. A column
    ``filter_ids`` (list of label ids) is a row's own filter.

    Args:
        label_texts: L strings, in id order; an Arrow array is taken as it is.
        filters: CSR pair (indptr (N + 1,), indices) of filtered label ids by ``row``, as of ``data.filter_csr``; None
            for no filter.
        positives_per_row: Positives of a row that enter the pool, drawn without replacement; None for all. Those not
            drawn still count as positives wherever another row brings them in.
        hard_negatives: Mined labels of a row that enter the pool, drawn from its line in ``mined``.
        random_negatives: Labels drawn from all L that enter the pool of a batch.
        max_candidates: Largest pool; negatives are dropped first, then the positives that most rows share. None for no
            limit.
        mined: (N, M) int32 shared tensor of hard negatives by ``row``, -1 where there is none; written by a callback.
        epoch: (1,) int64 shared tensor with the number of the epoch; written by a callback.
        seed: Draws depend on the seed, the epoch and the rows of the batch (their numbers, or else their texts) alone,
            so that they are the same for any number of workers and after a resume.
        pool: Whether candidates are drawn at all; not for losses over all labels.
        label_tokens: Tokens of the L label texts; None to tokenize the candidates of each batch.
        row_tokens: Tokens of the train texts by ``row``; None to tokenize the queries of each batch.
        token_dropout: Share of a text's tokens left out at random, in [0, 1); needs the tokens.
    """

    label_texts: pa.Array = None
    filters: tuple[np.ndarray, np.ndarray] | None = None
    positives_per_row: int | None = None
    hard_negatives: int = 0
    random_negatives: int = 0
    max_candidates: int | None = None
    mined: torch.Tensor | None = None
    epoch: torch.Tensor = field(default_factory=lambda: torch.zeros(1, dtype=torch.int64).share_memory_())
    seed: int = 0
    pool: bool = True
    label_tokens: TokenizedTexts | None = None
    row_tokens: TokenizedTexts | None = None
    token_dropout: float = 0.0

    def __post_init__(self) -> None:
        if self.label_texts is None:
            raise ValueError("XMCDataCollator needs label_texts, for example XMCDataset.label_texts")
        if not isinstance(self.label_texts, pa.Array | pa.ChunkedArray):
            self.label_texts = pa.array(checked_texts(self.label_texts), pa.string())
        check_counts(LEAST, self)
        if self.hard_negatives and self.mined is None:
            raise ValueError(f"hard_negatives={self.hard_negatives} needs mined, a shared (N, M) tensor of label ids")
        if self.token_dropout and (self.row_tokens is None or (self.pool and self.label_tokens is None)):
            raise ValueError(f"token_dropout={self.token_dropout} needs row_tokens and label_tokens")
        if self.filters is not None:
            check_filters(self.filters, len(self.label_texts))
        if not isinstance(self.prompts, dict) or not any(isinstance(each, dict) for each in self.prompts.values()):
            named = column_prompts(self.prompts)  # prompts by data set are left to the host
            self.prompts = {COLUMNS[task]: prompt for task, prompt in named.items()}

    def for_evaluation(self) -> XMCDataCollator:
        """The collator of evaluation batches.

        Its pool is **all** positives of the batch's rows and ``random_negatives`` labels, drawn by the seed and the
        texts of the rows: the same at every evaluation. Nothing is mined, dropped or left out.
        """
        drawn = {"positives_per_row": None, "hard_negatives": 0, "max_candidates": None, "token_dropout": 0.0}
        kept = {"mined": None, "filters": None, "row_tokens": None, "epoch": torch.zeros(1, dtype=torch.int64)}
        return replace(self, **drawn, **kept)  # type: ignore[arg-type]

    def __call__(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        """The batch of some rows.

        Args:
            rows: With ``text``, ``label_ids`` and perhaps ``row``, ``label_weights`` and ``filter_ids``.

        Raises:
            ValueError: Naming what came in place of such a row.
        """
        texts, positives = checked_rows(rows, len(self.label_texts))
        row_ids = self._row_numbers(rows)
        batch: dict[str, Any] = {"label": pad(positives)}  # (B, P); first, as the host counts rows by it
        if "dataset_name" in rows[0]:
            batch["dataset_name"] = rows[0]["dataset_name"]
        prompts = self._resolve_prompts(batch)
        keys = [zlib.crc32(text.encode()) for text in texts] if row_ids is None else row_ids.tolist()
        rng = np.random.default_rng([self.seed, int(self.epoch), *keys])
        candidate_ids = self.draw_pool(positives, row_ids, rng) if self.pool else None
        batch |= self._query_tokens(texts, row_ids, prompts, rng)
        if candidate_ids is not None:
            batch |= self._candidate_tokens(candidate_ids, prompts, rng)
            batch["candidate_ids"] = torch.from_numpy(candidate_ids)  # (C,)
        if any(row.get("label_weights") is not None for row in rows):
            batch["query_label_weights"] = pad(checked_weights(rows, positives), fill=0.0)  # (B, P)
        filtered = self._filtered(rows, row_ids)
        if filtered is not None:
            batch["query_filter_ids"] = pad(filtered)  # (B, F)
        return batch

    def _row_numbers(self, rows: list[dict[str, Any]]) -> np.ndarray | None:
        """The rows' places in the data set (B,) int64, or None where they do not tell."""
        kept = {"filters": self.filters and len(self.filters[0]) - 1, "mined": _length(self.mined)}
        num_rows = [size for size in (*kept.values(), _length(self.row_tokens)) if size is not None]
        if not all(row.get("row") is not None for row in rows):
            if num_rows and not self._warned_columns:
                self._warned_columns.add(("row",))
                logger.warning(
                    "rows without a column 'row' have no filters, mined negatives or kept tokens of the collator; "
                    "data.training_rows() has it"
                )
            return None
        row_ids = checked_ids([row["row"] for row in rows])
        if num_rows and not 0 <= row_ids.min() <= row_ids.max() < min(num_rows):
            raise ValueError(f"rows {row_ids.min()} to {row_ids.max()} are not all among the {min(num_rows)} of train")
        return row_ids

    def _filtered(self, rows: list[dict[str, Any]], row_ids: np.ndarray | None) -> list[np.ndarray] | None:
        """The labels filtered for each row, or None where nothing is."""
        own = [row.get("filter_ids") for row in rows]
        if any(each is not None for each in own):
            return [checked_ids([] if each is None else each) for each in own]
        if self.filters is None:
            return None
        if row_ids is None:
            return [np.empty(0, dtype=np.int64)] * len(rows)
        indptr, indices = self.filters
        return [indices[indptr[i] : indptr[i + 1]].astype(np.int64) for i in row_ids]

    def _query_tokens(
        self, texts: list[str], ids: np.ndarray | None, prompts: Any, rng: np.random.Generator
    ) -> dict[str, Any]:
        if self.row_tokens is not None and ids is not None:
            return self._kept_tokens("query", self.row_tokens, ids, rng)
        return self._tokens("query", "query", texts, prompts)

    def _candidate_tokens(self, ids: np.ndarray, prompts: Any, rng: np.random.Generator) -> dict[str, Any]:
        if self.label_tokens is not None:
            return self._kept_tokens("candidate", self.label_tokens, ids, rng)
        return self._tokens("candidate", "document", self.label_texts.take(pa.array(ids)).to_pylist(), prompts)

    def _tokens(self, column: str, task: str, texts: list[str], prompts: Any) -> dict[str, Any]:
        tokens = self.preprocess_fn(texts, prompt=self._get_prompt_for_column(prompts, column), task=task)
        return {f"{column}_{key}": value for key, value in tokens.items()}

    def _kept_tokens(
        self, column: str, tokens: TokenizedTexts, ids: np.ndarray, rng: np.random.Generator
    ) -> dict[str, Any]:
        found = tokens.features(torch.from_numpy(ids), self.token_dropout, rng)
        return {f"{column}_{key}": value for key, value in found.items()}

    def draw_pool(
        self, positives: list[np.ndarray], row_ids: np.ndarray | None, rng: np.random.Generator
    ) -> np.ndarray:
        """The candidates (C,) int64 of a batch, ascending, from B arrays of positives and the rows' numbers (B,)."""
        drawn = [self._some(p, self.positives_per_row, rng) for p in positives]
        drawn_ids, counts = np.unique(np.concatenate(drawn), return_counts=True)
        negatives = [np.empty(0, dtype=np.int64)]
        if self.hard_negatives and self.mined is not None and row_ids is not None:
            mined = self.mined[torch.from_numpy(row_ids)].numpy().astype(np.int64)  # (B, M)
            negatives += [self._some(line[line >= 0], self.hard_negatives, rng) for line in mined]
        if self.random_negatives:
            negatives.append(rng.integers(len(self.label_texts), size=self.random_negatives))
        negative_ids = np.setdiff1d(np.concatenate(negatives), drawn_ids)
        if self.max_candidates is not None:
            room = self.max_candidates - len(drawn_ids)
            if room < 0:  # what many rows share goes first: a rare label may not come again this epoch
                keep = np.argsort(counts + rng.random(len(counts)), kind="stable")[: self.max_candidates]
                drawn_ids, room = drawn_ids[keep], 0
            if len(negative_ids) > room:
                negative_ids = rng.choice(negative_ids, room, replace=False)
        pool = np.union1d(drawn_ids, negative_ids)
        if len(pool) == 0:  # a batch of rows without labels still needs one candidate to embed
            pool = rng.integers(len(self.label_texts), size=1)
        return pool

    @staticmethod
    def _some(ids: np.ndarray, count: int | None, rng: np.random.Generator) -> np.ndarray:
        return ids if count is None or len(ids) <= count else rng.choice(ids, count, replace=False)


def _length(values: Any) -> int | None:
    return None if values is None else len(values)


def pad(rows: list[np.ndarray], fill: float = PAD) -> torch.Tensor:
    """B arrays of any length -> (B, max(1, longest)) tensor of their dtype, padded at the end with ``fill``."""
    width = max(1, max(len(row) for row in rows))
    padded = np.full((len(rows), width), fill, dtype=rows[0].dtype)  # (B, P)
    for line, row in zip(padded, rows, strict=True):
        line[: len(row)] = row
    return torch.from_numpy(padded)
