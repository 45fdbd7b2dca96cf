"""The "xmc-retrieval" pipeline: texts in, the few right labels out.

This file travels inside every published repo and runs there as remote code: it needs transformers, and uses faiss
where that is installed. It replays the encoder modules that ``modules.json`` lists.
"""

from __future__ import annotations

import json
import os
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from safetensors.torch import load_file
from transformers import AutoConfig, AutoModel, Pipeline, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import cached_file

try:
    import faiss
except ImportError:
    faiss = None

FORMAT_VERSION = 1


class XMCStaticConfig(PretrainedConfig):
    """A table of token vectors as a transformers model, so that repos of static encoders open like all others."""

    model_type = "xmc-static"

    def __init__(self, vocab_size: int = 1, hidden_size: int = 1, **kwargs: Any) -> None:
        self.vocab_size = vocab_size
        self.hidden_size = hidden_size
        super().__init__(**kwargs)


class XMCStaticModel(PreTrainedModel):
    """``last_hidden_state`` (B, T, D) holds the vectors of the tokens."""

    config_class = XMCStaticConfig

    def __init__(self, config: XMCStaticConfig) -> None:
        super().__init__(config)
        self.embedding = torch.nn.Embedding(config.vocab_size, config.hidden_size)
        self.post_init()

    def forward(self, input_ids: torch.Tensor, attention_mask: torch.Tensor | None = None) -> BaseModelOutput:
        return BaseModelOutput(last_hidden_state=self.embedding(input_ids))


AutoConfig.register(XMCStaticConfig.model_type, XMCStaticConfig, exist_ok=True)
AutoModel.register(XMCStaticConfig, XMCStaticModel, exist_ok=True)


class XMCRetrievalPipeline(Pipeline):
    """Predicts labels for texts: ``[{"label": str, "score": float, "label_id": int}, ...]``, best first.

    Args of a call: a text or a list of texts; ``top_k`` (5), the number of labels; ``batch_size``.
    """

    _load_tokenizer = True
    _load_processor = _load_image_processor = _load_feature_extractor = _load_video_processor = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.xmc_config = self._read_json("xmc_config.json")
        if self.xmc_config["format_version"] > FORMAT_VERSION:
            raise ValueError(
                f"xmc_config.json: format_version {self.xmc_config['format_version']} is newer than {FORMAT_VERSION}, "
                "which this pipeline reads; upgrade: pip install -U hf_xmc"
            )
        self.labels = self._read_json("labels.json")
        self.encoder_modules = self._read_json("modules.json")
        self.dense = {row["path"]: self._load_dense(row["path"]) for row in self._modules_named("Dense")}
        self.pooling = [self._read_json(f"{row['path']}/config.json") for row in self._modules_named("Pooling")]
        self.is_static = bool(self._modules_named("StaticEmbedding"))
        if self.is_static and self.tokenizer.pad_token is None:  # batches are padded; the mask hides the pads
            self.tokenizer.pad_token = self.tokenizer.convert_ids_to_tokens(0)
        sentence_config = self._read_json("sentence_bert_config.json", missing={})
        self.max_length = sentence_config.get("max_seq_length") or self.tokenizer.model_max_length
        self.alive = np.ones(len(self.labels), dtype=bool)
        self.alive[self.xmc_config.get("removed_ids", [])] = False
        self._load_index()

    # -- files --------------------------------------------------------------------------------------------------------

    def _path(self, name: str, required: bool = True) -> str | None:
        # The commit of the model's own config: pipeline(revision=...) does not reach this class.
        commit = getattr(self.model.config, "_commit_hash", None)
        folder, file = os.path.split(name)
        return cached_file(
            self.model.name_or_path,
            file,
            subfolder=folder,
            revision=commit,
            _raise_exceptions_for_missing_entries=required,
        )

    def _read_json(self, name: str, missing: Any = None) -> Any:
        path = self._path(name, required=missing is None)
        if path is None:
            return missing
        with open(path, encoding="utf8") as file:
            return json.load(file)

    def _modules_named(self, name: str) -> list[dict[str, Any]]:
        return [row for row in self.encoder_modules if row["type"].rsplit(".", 1)[-1] == name]

    def _load_dense(self, folder: str) -> dict[str, Any]:
        config = self._read_json(f"{folder}/config.json")
        weights = load_file(self._path(f"{folder}/model.safetensors"))
        activation = config["activation_function"].rsplit(".", 1)[-1]
        return {
            "weight": weights["linear.weight"].to(self.device),
            "bias": weights["linear.bias"].to(self.device) if config["bias"] else None,
            "activation": getattr(torch.nn, activation)(),
            "input": config.get("module_input_name") or "sentence_embedding",
            "output": config.get("module_output_name") or config.get("module_input_name") or "sentence_embedding",
        }

    def _load_index(self) -> None:
        self.index, self.vectors = None, None
        path = self._path("index.faiss", required=False)
        if faiss is not None and path is not None:
            self.index = faiss.read_index(path, faiss.IO_FLAG_MMAP)
            rows = self.index.ntotal
        else:
            halves = load_file(self._path("label_embeddings.safetensors"))
            vectors = halves["embedding"].float()
            if "classifier" in halves:
                weights = self._cut(halves["classifier"].float())
                share = self.xmc_config["search"]["classifier_weight"]
                heads = any(dense["output"] == "classifier_embedding" for dense in self.dense.values())
                vectors = torch.cat([vectors, weights], 1) if heads else (1 - share) * vectors + share * weights
            self.vectors = vectors.to(self.device)  # (L, D)
            rows = len(self.vectors)
        if rows != len(self.labels):
            raise ValueError(f"labels.json has {len(self.labels)} labels, the index {rows} rows; save the repo again")

    # -- the pipeline -------------------------------------------------------------------------------------------------

    def _sanitize_parameters(self, top_k: int | None = None, **kwargs: Any) -> tuple[dict, dict, dict]:
        if top_k is None:
            return {}, {}, {}
        if not 1 <= top_k <= int(self.alive.sum()):
            raise ValueError(f"top_k must lie between 1 and the {int(self.alive.sum())} labels, got {top_k}")
        return {}, {"top_k": top_k}, {}

    def preprocess(self, text: str) -> dict[str, torch.Tensor]:
        if not isinstance(text, str):
            raise ValueError(f"expected a text (str), got {type(text).__name__}")
        options = (
            {"add_special_tokens": False} if self.is_static else {"truncation": True, "max_length": self.max_length}
        )
        tokens = dict(self.tokenizer(text, **options))
        if not tokens["input_ids"]:  # a text without tokens still needs a place, masked out, for its zero vector
            tokens = {"input_ids": [self.tokenizer.pad_token_id], "attention_mask": [0]}
        return {key: torch.tensor([value]) for key, value in tokens.items()}

    def _forward(self, inputs: dict[str, torch.Tensor], top_k: int | None = None) -> dict[str, torch.Tensor]:
        vectors = self.encode(inputs).float()  # (B, D)
        top_k = min(5, int(self.alive.sum())) if top_k is None else top_k
        ids, scores = self.search(vectors, top_k)
        return {"ids": torch.from_numpy(ids), "scores": torch.from_numpy(scores)}

    def postprocess(self, outputs: dict[str, torch.Tensor]) -> list[dict[str, Any]]:
        ids, scores = outputs["ids"].reshape(-1).tolist(), outputs["scores"].reshape(-1).tolist()
        return [
            {"label": self.labels[i], "score": s, "label_id": i} for i, s in zip(ids, scores, strict=True) if i >= 0
        ]

    def encode(self, inputs: dict[str, torch.Tensor]) -> torch.Tensor:
        """Tokens of B texts -> (B, D) query vectors, the dual-encoder half first."""
        known = {k: v for k, v in inputs.items() if k in ("input_ids", "attention_mask", "token_type_ids")}
        tokens = self.model(**known).last_hidden_state  # (B, T, H)
        mask = inputs["attention_mask"]
        if self.is_static:
            features = {"sentence_embedding": _pool(tokens, mask, "mean")}
        else:
            modes = [self.pooling[0].get("pooling_mode", "mean")] if self.pooling else ["mean"]
            modes = modes[0] if isinstance(modes[0], list) else modes
            features = {"sentence_embedding": torch.cat([_pool(tokens, mask, mode) for mode in modes], 1)}
        for row in self.encoder_modules[1:]:
            kind = row["type"].rsplit(".", 1)[-1]
            if kind == "Dense":
                dense = self.dense[row["path"]]
                out = F.linear(features[dense["input"]], dense["weight"], dense["bias"])
                features[dense["output"]] = dense["activation"](out)
            elif kind == "Normalize":
                features["sentence_embedding"] = F.normalize(features["sentence_embedding"], dim=-1)
            elif kind not in ("Pooling", "Dropout"):
                raise ValueError(f"modules.json: this pipeline cannot replay the module {row['type']}")
        if "classifier_embedding" not in features:
            return features["sentence_embedding"]
        weight = self.xmc_config["search"]["classifier_weight"]
        classifier_half = self._cut(features["classifier_embedding"])
        return torch.cat([(1 - weight) * features["sentence_embedding"], weight * classifier_half], 1)

    def _cut(self, vectors: torch.Tensor) -> torch.Tensor:
        return F.normalize(vectors, dim=-1) if self.xmc_config["search"]["normalize_classifier"] else vectors

    def search(self, queries: torch.Tensor, top_k: int) -> tuple[np.ndarray, np.ndarray]:
        """(B, D) queries -> ids and scores (B, top_k), scores descending, equal scores by ascending id."""
        count = min(top_k + 1, int(self.alive.sum()))  # one more shows whether the cut falls among equal scores
        if self.index is not None:
            selector = None if self.alive.all() else faiss.IDSelectorBatch(np.flatnonzero(self.alive))
            params = None if selector is None else faiss.SearchParameters(sel=selector)
            scores, ids = self.index.search(queries.cpu().numpy(), count, params=params)
        else:
            dead = torch.from_numpy(~self.alive).to(queries.device)
            scores, ids = torch.topk((queries @ self.vectors.T).masked_fill_(dead, -torch.inf), count, dim=1)
            scores, ids = scores.cpu().numpy(), ids.cpu().numpy()
        if count > top_k:
            for row in np.flatnonzero(scores[:, top_k - 1] == scores[:, top_k]):
                every = self._scores_of_all(queries[row])
                ids[row] = np.argsort(-every, kind="stable")[:count]
                scores[row] = every[ids[row]]
        order = np.lexsort((ids, -scores))[:, :top_k]
        return np.take_along_axis(ids, order, 1), np.take_along_axis(scores, order, 1)

    def _scores_of_all(self, query: torch.Tensor) -> np.ndarray:
        if self.vectors is None:
            self.vectors = torch.from_numpy(self.index.reconstruct_n(0, self.index.ntotal)).to(query.device)
        scores = (self.vectors @ query).cpu().numpy()
        return np.where(self.alive, scores, -np.inf)


def _pool(tokens: torch.Tensor, mask: torch.Tensor, mode: str) -> torch.Tensor:
    """(B, T, H) token vectors and (B, T) mask -> (B, H)."""
    weights = mask.unsqueeze(-1).to(tokens.dtype)
    if mode == "cls":
        return tokens[torch.arange(len(tokens)), mask.argmax(1)]
    if mode == "max":
        return tokens.masked_fill(weights == 0, -1e9).amax(1)
    if mode == "lasttoken":
        last = mask.size(1) - 1 - mask.flip(1).argmax(1)
        return tokens[torch.arange(len(tokens)), last]
    if mode == "mean":
        return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1e-9)
    if mode == "mean_sqrt_len_tokens":
        return (tokens * weights).sum(1) / weights.sum(1).clamp(min=1e-9).sqrt()
    raise ValueError(f"this pipeline cannot replay pooling mode {mode!r}")
