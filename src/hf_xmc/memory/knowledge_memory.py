"""KnowledgeMemory: a memory made of training rows, saved and loaded; what it answers is in ``hub/memory_xmc.py``."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import scipy.sparse as sp
from numpy.typing import DTypeLike

from hf_xmc.hub.memory_xmc import Memory, MemoryParts, read_parts
from hf_xmc.hub.repo_xmc import FAISS_KINDS, INDEX_FILE
from hf_xmc.hub.search_xmc import MAX_EXACT, StoredRows, VectorIndex, faiss
from hf_xmc.hub.votes_xmc import MemoryForm
from hf_xmc.index.label_index import KINDS, LabelIndex
from hf_xmc.memory.files import MEMORY_FILE, write_memory
from hf_xmc.metrics.inputs import Truth, as_truth

_KEY_DTYPES = (np.dtype(np.float32), np.dtype(np.float16), np.dtype(np.int8))
# Kinds of label index that take too long to build over rows, of which there are more than labels.
_SEARCHED_EXACTLY = ("hnsw", "ivf")


class KnowledgeMemory(Memory):
    """A :class:`~hf_xmc.hub.memory_xmc.Memory` of training rows: their keys, their labels and how they vote.

    Only the rows are stored here. Label vectors are those of ``labels``, so a label that the index adds or removes is
    added or removed here too.

    Args:
        row_vectors: (N, D) float32, training rows in the space of the label vectors. That is
            ``encoder.key_vectors(texts)``: the query prompt, no weight.
        truth: scipy sparse (N, at most L), the labels of the rows, any values above 0; or N lists of label ids.
        labels: The label vectors (L, D).
        form: How votes are weighed, None for the defaults.
        dtype: float32, float16 or int8 (with one float32 scale a row); how the rows are kept.
        kind: How the rows are searched, one of ``hf_xmc.index.KINDS``; None: "pq" for more than 200,000 rows where
            FAISS is installed, else as the labels are, or "exact" where that is a graph or lists. "exact" keeps a
            float32 copy of up to 512 MB of rows of another dtype, and decodes more than that block by block. With
            rows and labels of "pq" a single query measured a sixth of the time.

    Raises:
        ValueError: For shapes that disagree, vectors that are not finite, votes that are not above 0, another dtype or
            an unknown kind.
    """

    def __init__(
        self,
        row_vectors: np.ndarray,
        truth: Truth,
        labels: LabelIndex,
        form: MemoryForm | None = None,
        *,
        dtype: DTypeLike = np.float32,
        kind: str | None = None,
    ) -> None:
        row_vectors = np.asarray(row_vectors, dtype=np.float32)
        if row_vectors.ndim != 2 or not np.isfinite(row_vectors).all():
            raise ValueError(f"row_vectors must be finite, with shape (N, D), got shape {row_vectors.shape}")
        key_dtype = _key_dtype(dtype)
        if form is not None and not isinstance(form, MemoryForm):
            raise ValueError(f"form must be a hf_xmc.memory.MemoryForm, got {form!r:.80}")
        truth = as_votes(truth, len(labels))
        if truth.shape[0] != len(row_vectors) or truth.shape[1] > len(labels):
            raise ValueError(
                f"truth must have shape ({len(row_vectors)}, at most {len(labels)}) for {len(row_vectors)} rows and "
                f"{len(labels)} labels, got {truth.shape}"
            )
        parts = (truth.indptr, truth.indices, truth.data, truth.shape[1], form or MemoryForm())
        super().__init__(MemoryParts(compress(row_vectors, key_dtype), *parts), labels)
        self.kind = _kind(kind, labels, len(row_vectors))

    def _index_rows(self, alive: np.ndarray) -> VectorIndex:
        return super()._index_rows(alive) if self.kind == "exact" else LabelIndex(self.keys[:], alive, self.kind)

    @property
    def truth(self) -> sp.csr_matrix:
        """(N, L) float32, the votes of a row."""
        return sp.csr_matrix((self.votes, self.indices, self.indptr), shape=(len(self), self.num_labels))

    @property
    def parts(self) -> MemoryParts:
        """What is stored."""
        return MemoryParts(self.keys, self.indptr, self.indices, self.votes, self.num_labels, self.form)

    def with_labels(self, labels: LabelIndex) -> KnowledgeMemory:
        """The same rows beside other labels, which begin with those that it has."""
        memory = copy.copy(self)
        memory.labels = labels
        return memory

    @property
    def num_bytes(self) -> int:
        """What the memory takes beside the label index, as it is stored; a search may keep more, see ``kind``."""
        return self.keys.nbytes + self.indptr.nbytes + self.indices.nbytes

    def save(self, folder: str | Path) -> None:
        """Write row keys, their labels and the form, and the index of the rows where it took time to build.

        The label vectors stay in their index.
        """
        write_memory(folder, self.parts)
        index = Path(folder) / INDEX_FILE
        if self.kind in FAISS_KINDS and isinstance(self.rows, LabelIndex):
            self.rows.save(index)
        else:
            for file in (index, index.with_suffix(".json")):
                file.unlink(missing_ok=True)

    @classmethod
    def load(cls, folder: str | Path, labels: LabelIndex, *, kind: str | None = None) -> KnowledgeMemory:
        """Map what :meth:`save` wrote; row keys are read from the file as they are needed.

        Args:
            folder: The folder.
            labels: The index of the labels that the memory was built with.
            kind: As for the class; None for the index that was saved with it.

        Raises:
            ValueError: Naming the file that is missing, damaged, of a newer format version or of other labels.
        """
        file, index = Path(folder) / MEMORY_FILE, Path(folder) / INDEX_FILE
        if not file.is_file():
            raise ValueError(f"{folder} has no {MEMORY_FILE}; save one with KnowledgeMemory.save")
        memory = cls.__new__(cls)
        Memory.__init__(memory, read_parts(file), labels)
        memory.kind = _kind(kind, labels, len(memory))
        if kind is None and index.with_suffix(".json").is_file() and faiss is not None:
            rows = LabelIndex.load(index, memory.keys[:], np.diff(memory.indptr) > 0)
            memory._rows, memory.kind = rows, rows.kind
        return memory


def as_votes(truth: Truth, num_labels: int) -> sp.csr_matrix:
    """Truth as CSR (N, at most L) float32 without zeros: its values where it is sparse, 1 for ids in lists.

    Raises:
        ValueError: For values that are not finite or below 0, or what is no truth.
    """
    if not sp.issparse(truth):
        return sp.csr_matrix(as_truth(truth, num_labels), dtype=np.float32)
    votes = sp.csr_matrix(truth, dtype=np.float32, copy=True)
    votes.sum_duplicates()
    votes.eliminate_zeros()
    if not (votes.data > 0).all() or not np.isfinite(votes.data).all():
        raise ValueError(f"votes must be finite and above 0, got {votes.data.min()} .. {votes.data.max()}")
    return votes


def compress(vectors: np.ndarray, dtype: np.dtype) -> StoredRows:
    """(N, D) float32 as keys of the dtype; int8 with a scale for each row."""
    if dtype != np.int8:
        return StoredRows(vectors.astype(dtype, copy=False))
    scales = np.abs(vectors).max(axis=1, initial=0) / np.float32(127)
    return StoredRows((vectors / np.maximum(scales, 1e-30)[:, None]).round().astype(np.int8), scales)


def _key_dtype(dtype: DTypeLike) -> np.dtype:
    try:
        found = np.dtype(dtype)
    except TypeError:
        found = None
    if found not in _KEY_DTYPES:
        raise ValueError(f"dtype must be float32, float16 or int8, got {dtype!r}")
    return found


def _kind(kind: str | None, labels: LabelIndex, num_rows: int) -> str:
    if kind is None and num_rows > MAX_EXACT and faiss is not None:
        return "pq"
    if kind is None:
        return "exact" if labels.kind in _SEARCHED_EXACTLY else labels.kind
    if kind not in KINDS:
        raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {kind!r}")
    return kind
