"""How to cut the score matrix of a blockwise loss: what fits in memory and in a core's cache."""

from __future__ import annotations

from dataclasses import dataclass

# Measured: a chunk below this many rows spends its time on reading and writing the gradient of the labels.
MIN_KEPT_ROWS = {"cpu": 128, "cuda": 1024}
MAX_STREAMED_ROWS = {"cpu": 1024, "cuda": 16384}
DEFAULT_BUDGET = {"cpu": 2**26, "cuda": 2**28}
# A tile and its gradient stay in a core's second-level cache.
CPU_TILE_ENTRIES = 2**18


@dataclass(frozen=True)
class Plan:
    """How to cut the score matrix: chunks of ``rows`` queries, tiles of ``columns`` labels.

    With ``keep_scores`` the scores of a chunk stay in memory (rows x L) from the first sweep to the second: 6 B L D
    floating point operations forward and backward. Without, they are made twice: 8 B L D, and memory for one tile.
    """

    rows: int
    columns: int
    keep_scores: bool


def make_plan(
    num_queries: int,
    num_labels: int,
    itemsize: int,
    device_type: str,
    memory_budget: int | None = None,
    may_keep: bool = True,
) -> Plan:
    """The plan for a memory budget: keep the scores where a chunk of useful height fits, else make them twice.

    Args:
        num_queries: B.
        num_labels: L.
        itemsize: Bytes of one score.
        device_type: "cpu" or "cuda".
        memory_budget: Bytes for the scores; by default 64 MiB on a CPU, 256 MiB on a GPU.
        may_keep: False where every rank must cut the rows alike, whatever its L.
    """
    kind = device_type if device_type in DEFAULT_BUDGET else "cuda"
    budget = DEFAULT_BUDGET[kind] if memory_budget is None else memory_budget
    kept = budget // max(1, num_labels * itemsize)
    keep = may_keep and kept >= min(num_queries, MIN_KEPT_ROWS[kind])
    rows = kept if keep else MAX_STREAMED_ROWS[kind]
    num_chunks = max(1, -(-num_queries // max(1, rows)))
    rows = max(1, -(-num_queries // num_chunks))
    entries = CPU_TILE_ENTRIES if kind == "cpu" else budget // itemsize
    columns = min(max(entries // rows // 128 * 128, 128), 1024 if kind == "cpu" else 2**16)
    return Plan(rows, columns, keep)
