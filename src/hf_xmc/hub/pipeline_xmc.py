"""The "xmc-retrieval" pipeline: texts in, the few right labels out.

This file travels inside every published repo and runs there as remote code: it needs transformers, and uses faiss
where that is installed. It replays the encoder modules that ``modules.json`` lists.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import HfApi, snapshot_download
from safetensors.torch import load_file
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel, Pipeline, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import cached_file

from .search_xmc import LabelSearch, query_prompt, read_json, required

_REPLAYED = ("Transformer", "StaticEmbedding", "Pooling", "Dense", "Normalize", "Dropout", "LayerNorm")


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

    Args of a call: a text or a list of texts; ``batch_size``; ``top_k`` (5), the number of labels; ``threshold``, the
    least score; ``min_precision``, the expected precision of a text's labels, and ``candidates``, the ids of the only
    labels to choose from; ``memory``, whether training rows vote (None: if the repo has a memory); and
    ``return_evidence``, whether each label comes with the training rows and the label text behind it, of which
    ``num_evidence`` (3) rows.
    """

    _load_tokenizer = True
    _load_processor = _load_image_processor = _load_feature_extractor = _load_video_processor = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.label_search = LabelSearch(self._path)
        self.steps = [self._load_step(row) for row in read_json(self._path, "modules.json")]
        self.is_static = self.steps[0][0] == "StaticEmbedding"
        self.prompt = query_prompt(self._path)
        if self.tokenizer.pad_token is None:  # batches are padded; the mask hides the pads
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.convert_ids_to_tokens(0)
        if self.is_static:
            self.static_tokenizer = Tokenizer.from_file(required(self._path, "tokenizer.json"))
            self.static_tokenizer.no_padding()
        elif (places := getattr(self.model.config, "max_position_embeddings", None) or 0) > 0:
            self.tokenizer.model_max_length = min(self.tokenizer.model_max_length, places)
        self.prompt_length = self._count_prompt()

    # -- files --------------------------------------------------------------------------------------------------------

    def _path(self, name: str) -> str | None:
        folder, file = os.path.split(name)
        return cached_file(
            self.model.name_or_path,
            file,
            subfolder=folder,
            revision=_commit(),
            _raise_exceptions_for_missing_entries=False,
        )

    def _load_step(self, row: dict[str, Any]) -> tuple[str, dict[str, Any]]:
        """What one line of modules.json does, with its settings and weights."""
        kind, folder = row["type"].rsplit(".", 1)[-1], row["path"]
        if kind not in _REPLAYED:
            raise ValueError(f"modules.json: this pipeline cannot replay the module {row['type']}")
        path = self._path(f"{folder}/config.json") if folder else None
        config = read_json(self._path, f"{folder}/config.json") if path else {}
        if kind in ("Dense", "LayerNorm"):
            weights = load_file(required(self._path, f"{folder}/model.safetensors"))
            dtype = self.model.dtype
            config |= {name: weight.to(self.device, dtype) for name, weight in weights.items()}
        if kind == "Dense":
            config["activation"] = getattr(torch.nn, config["activation_function"].rsplit(".", 1)[-1])()
        return kind, config

    # -- the pipeline -------------------------------------------------------------------------------------------------

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        checked = ("top_k", "min_precision", "candidates", "memory", "return_evidence")
        names = (*checked, "threshold", "num_evidence")
        asked = {name: kwargs[name] for name in names if kwargs.get(name) is not None}
        if hasattr(self, "label_search"):
            self.label_search.check(**{name: asked[name] for name in checked if name in asked})
        return {}, asked, {}

    def preprocess(self, text: str) -> dict[str, torch.Tensor]:
        if not isinstance(text, str):
            raise ValueError(f"expected a text (str), got {type(text).__name__}")
        tokens = self._tokens(self.prompt + text)
        if not tokens["input_ids"]:  # a text without tokens still needs a place, masked out, for its zero vector
            tokens = {"input_ids": [self.tokenizer.pad_token_id], "attention_mask": [0]}
        return {key: torch.tensor([value]) for key, value in tokens.items()}

    def _tokens(self, text: str) -> dict[str, list[int]]:
        if self.is_static:
            ids = self.static_tokenizer.encode(text, add_special_tokens=False).ids
            return {"input_ids": ids, "attention_mask": [1] * len(ids)}
        return dict(self.tokenizer(text, truncation=True))

    def _count_prompt(self) -> int:
        """Tokens at the start that a Pooling with ``include_prompt: false`` leaves out."""
        if not self.prompt or all(config.get("include_prompt", True) for _, config in self.steps):
            return 0
        ids = self._tokens(self.prompt)["input_ids"]
        return len(ids) - (ids[-1] in self.tokenizer.all_special_ids)

    def _forward(self, inputs: dict[str, torch.Tensor], **asked: Any) -> dict[str, Any]:
        queries = self.encode(**inputs).float().cpu().numpy()  # (B, D)
        asked = {"top_k": min(5, int(self.label_search.alive.sum()))} | asked
        return {"answers": self.label_search.predict(queries, **asked)}

    def postprocess(self, outputs: dict[str, Any]) -> list[dict[str, Any]]:
        answers = outputs["answers"]
        return answers[0] if answers and isinstance(answers[0], list) else answers  # a batch of one, or one of a batch

    def encode(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Tokens (B, T) of texts with their mask -> (B, D) query vectors, the dual-encoder half first."""
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        tokens = self.model(input_ids=input_ids, attention_mask=attention_mask, **more).last_hidden_state  # (B, T, H)
        features = {"sentence_embedding": pool(tokens, attention_mask, "mean")}  # what a StaticEmbedding does
        for kind, config in self.steps[1:]:
            source = config.get("module_input_name") or "sentence_embedding"
            target = config.get("module_output_name") or source
            if kind == "Pooling":
                modes = config.get("pooling_mode", "mean")
                skipped = 0 if config.get("include_prompt", True) else self.prompt_length
                parts = [
                    pool(tokens, attention_mask, m, skipped) for m in ([modes] if isinstance(modes, str) else modes)
                ]
                features["sentence_embedding"] = torch.cat(parts, 1)
            elif kind == "Dense":
                out = config["activation"](
                    F.linear(features[source], config["linear.weight"], config.get("linear.bias"))
                )
                if config.get("use_residual"):
                    shortcut = config.get("residual.weight")
                    out = out + (features[source] if shortcut is None else F.linear(features[source], shortcut))
                features[target] = out
            elif kind == "LayerNorm":
                width = features[source].shape[-1:]
                features[source] = F.layer_norm(features[source], width, config["norm.weight"], config["norm.bias"])
            elif kind == "Normalize":
                features[target] = F.normalize(features[source], dim=-1)
        embedding, row = features["sentence_embedding"], features.get("classifier_embedding")
        if row is None:
            return embedding
        form = self.label_search.config["search"]
        if form["normalize_classifier"]:
            row = F.normalize(row, dim=-1)
        return torch.cat([(1 - form["classifier_weight"]) * embedding, form["classifier_weight"] * row], 1)

    # -- saving and publishing ----------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Copy the whole repo that this pipeline was loaded from: labels, index, memory, card and code as they are."""
        source = self.model.name_or_path
        if not os.path.isdir(source):
            source = snapshot_download(source, revision=_commit())
        target = Path(save_directory)
        for file in Path(source).rglob("*"):
            name = file.relative_to(source)
            if (
                file.is_file()
                and not {".git", ".cache"} & set(name.parts)
                and file.resolve() != (target / name).resolve()
            ):
                (target / name).parent.mkdir(parents=True, exist_ok=True)
                shutil.copyfile(file, target / name)

    def push_to_hub(
        self, repo_id: str, *, private: bool | None = None, token: str | None = None, **kwargs: Any
    ) -> str:
        """Publish the whole repo under a name; returns the address of the commit. ``kwargs`` of ``upload_folder``."""
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            kwargs = {"commit_message": "Push retriever"} | kwargs
            return api.upload_folder(repo_id=repo_id, folder_path=folder, **kwargs).commit_url


def _commit() -> str | None:
    """The commit that ``transformers.pipeline(revision=...)`` loads, which it tells no pipeline.

    It runs this file from a folder of its name.
    """
    name = Path(__file__).parent.name
    return name if re.fullmatch("[0-9a-f]{40}", name) else None


def pool(tokens: torch.Tensor, mask: torch.Tensor, mode: str, skipped: int = 0) -> torch.Tensor:
    """(B, T, H) token vectors and (B, T) mask -> (B, H), the first ``skipped`` tokens of each text left out."""
    positions = mask.cumsum(1)  # (B, T), from 1 at the first token of a text
    if skipped:
        mask = mask * (positions > skipped)
    if mode == "cls":
        return tokens[torch.arange(len(tokens), device=tokens.device), mask.int().argmax(1)]
    if mode == "max":
        return tokens.masked_fill(mask.unsqueeze(-1) == 0, -torch.inf).amax(1)
    if mode == "lasttoken":
        last = mask.size(1) - 1 - mask.flip(1).int().argmax(1)
        return tokens[torch.arange(len(tokens), device=tokens.device), last]
    if mode not in ("mean", "mean_sqrt_len_tokens", "weightedmean"):
        raise ValueError(f"this pipeline cannot replay pooling mode {mode!r}")
    weights = (mask * positions if mode == "weightedmean" else mask).unsqueeze(-1).to(tokens.dtype)
    total = weights.sum(1, dtype=torch.float32).clamp(min=1e-9)
    summed = (tokens * weights).sum(1, dtype=torch.float32)
    return (summed / (total.sqrt() if mode == "mean_sqrt_len_tokens" else total)).to(tokens.dtype)
