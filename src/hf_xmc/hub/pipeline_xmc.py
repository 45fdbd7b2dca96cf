"""The "xmc-retrieval" pipeline: texts in, the few right labels out.

This file travels inside every published repo and runs there as remote code: it needs transformers, and uses faiss
where that is installed. It replays the encoder modules that ``modules.json`` lists.
"""

from __future__ import annotations

import os
import re
import shutil
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import GeneratorType
from typing import Any

import torch
import torch.nn.functional as F
from huggingface_hub import HfApi, snapshot_download
from tokenizers import Tokenizer
from transformers import AutoConfig, AutoModel, Pipeline, PretrainedConfig, PreTrainedModel
from transformers.modeling_outputs import BaseModelOutput
from transformers.utils import cached_file

from .answers_xmc import RepoParts, answer
from .checks_xmc import Request, check_options, checked_request, checked_texts
from .repo_xmc import Step, query_prompt, required
from .whole_xmc import folder_beside, move_into

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
        """Vectors of the tokens (B, T)."""
        return BaseModelOutput(last_hidden_state=self.embedding(input_ids))


AutoConfig.register(XMCStaticConfig.model_type, XMCStaticConfig, exist_ok=True)
AutoModel.register(XMCStaticConfig, XMCStaticModel, exist_ok=True)


class XMCRetrievalPipeline(Pipeline):
    """Predicts labels for texts: ``[{"label": str, "score": float, "label_id": int}, ...]``, best first.

    Args of a call: a text or a list of texts; ``batch_size``; ``top_k`` (5), the number of labels; ``threshold``, the
    least score; ``min_precision``, the precision of the labels kept; ``tail``, from likely to rare labels, in [0, 1],
    of a repo with a ranker; ``candidates``, the ids of the only labels to choose from; ``memory``, whether training
    rows vote (None: if the repo has a memory and no ranker); and ``return_evidence``, whether each label comes with
    the training rows, of which ``num_evidence`` (3), and the label text behind it.
    """

    _load_tokenizer: Any = True
    _load_processor: Any = False
    _load_image_processor: Any = False
    _load_feature_extractor: Any = False
    _load_video_processor: Any = False
    tokenizer: Any
    parts: RepoParts
    _is_read = False

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.parts = RepoParts(self._path)
        self.steps = [self._loaded(step) for step in self.parts.steps]
        self.is_static = self.steps[0].kind == "StaticEmbedding"
        self.prompt = query_prompt(self._path)
        if self.tokenizer.pad_token is None:  # batches are padded; the mask hides the pads
            self.tokenizer.pad_token = self.tokenizer.eos_token or self.tokenizer.convert_ids_to_tokens(0)
        if self.is_static:
            self.static_tokenizer = Tokenizer.from_file(str(required(self._path, "tokenizer.json")))
            self.static_tokenizer.no_padding()
        elif (places := getattr(self.model.config, "max_position_embeddings", None) or 0) > 0:
            self.tokenizer.model_max_length = min(self.tokenizer.model_max_length, places)
        self.prompt_length = self._count_prompt()
        self._is_read = True  # options of the constructor could not be checked before
        check_options(set(self._given) - {"framework"})  # which hosts before transformers 5 take
        checked_request(self.parts, **self._forward_params)

    # -- files --------------------------------------------------------------------------------------------------------

    def _path(self, name: str) -> str | None:
        folder, file = os.path.split(name)
        return cached_file(
            str(self.model.name_or_path),
            file,
            subfolder=folder,
            revision=_commit(),
            _raise_exceptions_for_missing_entries=False,
        )

    def _loaded(self, step: Step) -> Step:
        """The step with its weights as tensors beside the model."""
        if step.kind not in _REPLAYED:
            raise ValueError(f"modules.json: this pipeline cannot replay the module {step.kind}")
        # Copied, as they are mapped from a file that nobody may write to.
        weights = {name: torch.tensor(w).to(self.device, self.model.dtype) for name, w in step.weights.items()}
        return step._replace(weights=weights)

    # -- the pipeline -------------------------------------------------------------------------------------------------

    def __call__(  # type: ignore[override]
        self, inputs: str | Iterable[str], **kwargs: Any
    ) -> list[Any]:
        """The labels of a text, or a list of them for several; a generator or torch data set is answered lazily."""
        if isinstance(inputs, GeneratorType | torch.utils.data.Dataset):
            return super().__call__(inputs, **kwargs)
        texts = checked_texts(inputs)
        if not texts:
            self._sanitize_parameters(**kwargs)
            return []
        return super().__call__(texts[0] if isinstance(inputs, str) else texts, **kwargs)

    def _sanitize_parameters(self, **kwargs: Any) -> tuple[dict, dict, dict]:
        # The host hands on what it takes itself at the start, and asks for options once it has those.
        if self._is_read:
            check_options(kwargs)
        else:
            self._given = kwargs
        asked = {name: kwargs[name] for name in Request._fields if kwargs.get(name) is not None}
        if isinstance(asked.get("candidates"), Iterator):
            asked["candidates"] = list(asked["candidates"])  # an iterator serves one batch alone
        if self._is_read:
            checked_request(self.parts, **asked)
        return {}, asked, {}

    def preprocess(self, text: str) -> dict[str, Any]:  # type: ignore[override]
        """One text -> its tokens (1, T), and itself."""
        (text,) = checked_texts([text])
        tokens = self._tokens(self.prompt + text)
        if not tokens["input_ids"]:  # a text without tokens still needs a place, masked out, for its zero vector
            tokens = {"input_ids": [self.tokenizer.pad_token_id], "attention_mask": [0]}
        return {"text": text} | {key: torch.tensor([value]) for key, value in tokens.items()}

    def _tokens(self, text: str) -> dict[str, list[int]]:
        if self.is_static:
            ids = self.static_tokenizer.encode(text, add_special_tokens=False).ids
            return {"input_ids": ids, "attention_mask": [1] * len(ids)}
        return dict(self.tokenizer(text, truncation=True))

    def _count_prompt(self) -> int:
        """Tokens at the start that a Pooling with ``include_prompt: false`` leaves out."""
        if not self.prompt or all(step.config.get("include_prompt", True) for step in self.steps):
            return 0
        ids = self._tokens(self.prompt)["input_ids"]
        return len(ids) - (ids[-1] in self.tokenizer.all_special_ids)

    def _forward(  # type: ignore[override]
        self, inputs: dict[str, Any], **asked: Any
    ) -> dict[str, Any]:
        texts = inputs.pop("text")
        texts = [texts] if isinstance(texts, str) else texts
        first, second = self.encode(**inputs)
        halves = first.float().cpu().numpy(), None if second is None else second.float().cpu().numpy()
        request = checked_request(self.parts, **asked)
        return {"answers": answer(self.parts, self.parts.join(*halves), texts, request)}

    def postprocess(self, outputs: dict[str, Any]) -> list[dict[str, Any]]:  # type: ignore[override]
        """The labels of one text."""
        answers = outputs["answers"]
        return answers[0] if answers and isinstance(answers[0], list) else answers  # a batch of one, or one of a batch

    def encode(
        self, input_ids: torch.Tensor, attention_mask: torch.Tensor, token_type_ids: torch.Tensor | None = None
    ) -> tuple[torch.Tensor, torch.Tensor | None]:
        """Tokens (B, T) and mask -> the dual encoder's vectors (B, De), and the classifier head's (B, Dc) or None."""
        more = {} if token_type_ids is None else {"token_type_ids": token_type_ids}
        tokens = self.model(input_ids=input_ids, attention_mask=attention_mask, **more).last_hidden_state  # (B, T, H)
        features = {"sentence_embedding": pool(tokens, attention_mask, "mean")}  # what a StaticEmbedding does
        for step in self.steps[1:]:
            if step.kind == "Pooling":
                features["sentence_embedding"] = self._pooled(step, tokens, attention_mask)
            elif step.kind == "Dense":
                features[step.target] = dense(step, features[step.source])
            elif step.kind == "LayerNorm":
                x = features[step.source]
                features[step.source] = F.layer_norm(
                    x, x.shape[-1:], step.weights["norm.weight"], step.weights["norm.bias"]
                )
            elif step.kind == "Normalize":
                features[step.target] = F.normalize(features[step.source], dim=-1)
        return features["sentence_embedding"], features.get("classifier_embedding")

    def _pooled(self, step: Step, tokens: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        modes = step.config.get("pooling_mode", "mean")
        skipped = 0 if step.config.get("include_prompt", True) else self.prompt_length
        return torch.cat([pool(tokens, mask, m, skipped) for m in ([modes] if isinstance(modes, str) else modes)], 1)

    # -- saving and publishing ----------------------------------------------------------------------------------------

    def save_pretrained(self, save_directory: str | os.PathLike[str], **kwargs: Any) -> None:
        """Copy the whole repo that this pipeline was loaded from: labels, index, memory, card and code as they are."""
        source = Path(str(self.model.name_or_path))
        if not source.is_dir():
            source = Path(snapshot_download(str(source), revision=_commit()))
        target = Path(save_directory)
        # A snapshot of the Hub is made of links to its blobs; no other link out of a folder is followed.
        homes = [source.resolve(), (source.parent.parent / "blobs").resolve()]
        if target.resolve() == source.resolve():
            return
        with folder_beside(target) as scratch:
            for file in source.rglob("*"):
                name = file.relative_to(source)
                if (
                    file.is_file()
                    and not _is_aside(name)
                    and any(file.resolve().is_relative_to(home) for home in homes)
                ):
                    (scratch / name).parent.mkdir(parents=True, exist_ok=True)
                    shutil.copyfile(file, scratch / name)
            move_into(scratch, target)

    def push_to_hub(  # type: ignore[override]
        self, repo_id: str, *, private: bool | None = None, token: str | None = None, **kwargs: Any
    ) -> str:
        """Publish the whole repo under a name; returns the address of the commit. ``kwargs`` of ``upload_folder``."""
        api = HfApi(token=token)
        repo_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        with tempfile.TemporaryDirectory() as folder:
            self.save_pretrained(folder)
            kwargs = {"commit_message": "Push retriever"} | kwargs
            return api.upload_folder(repo_id=repo_id, folder_path=folder, **kwargs).commit_url


def _is_aside(name: Path) -> bool:
    """Whether a file is no part of the repo: of git, of the cache, of a training, or a pickle."""
    return bool({".git", ".cache", "checkpoints"} & set(name.parts)) or name.suffix in (".bin", ".pt", ".pkl", ".pth")


def _commit() -> str | None:
    """The commit that ``transformers.pipeline(revision=...)`` loads, which it tells no pipeline.

    It runs this file from a folder of its name.
    """
    name = Path(__file__).parent.name
    return name if re.fullmatch("[0-9a-f]{40}", name) else None


def dense(step: Step, x: torch.Tensor) -> torch.Tensor:
    """A Dense module: (B, D) -> (B, D')."""
    weights = step.weights
    out = getattr(torch.nn, step.activation)()(F.linear(x, weights["linear.weight"], weights.get("linear.bias")))
    if step.config.get("use_residual"):
        shortcut = weights.get("residual.weight")
        out = out + (x if shortcut is None else F.linear(x, shortcut))
    return out


def pool(tokens: torch.Tensor, mask: torch.Tensor, mode: str, skipped: int = 0) -> torch.Tensor:
    """(B, T, H) token vectors and (B, T) mask -> (B, H), the first ``skipped`` tokens of each text left out."""
    positions = mask.cumsum(1)  # (B, T), from 1 at the first token of a text
    if skipped:
        mask = mask * (positions > skipped)
    if mode == "cls":
        return _token_at(tokens, mask.int().argmax(1))
    if mode == "max":
        return tokens.masked_fill(mask.unsqueeze(-1) == 0, -torch.inf).amax(1)
    if mode == "lasttoken":
        last = mask.size(1) - 1 - mask.flip(1).int().argmax(1)
        return _token_at(tokens, last)
    if mode not in ("mean", "mean_sqrt_len_tokens", "weightedmean"):
        raise ValueError(f"this pipeline cannot replay pooling mode {mode!r}")
    weights = (mask * positions if mode == "weightedmean" else mask).unsqueeze(-1).to(tokens.dtype)
    total = weights.sum(1, dtype=torch.float32).clamp(min=1e-9)
    summed = (tokens * weights).sum(1, dtype=torch.float32)
    return (summed / (total.sqrt() if mode == "mean_sqrt_len_tokens" else total)).to(tokens.dtype)


def _token_at(tokens: torch.Tensor, place: torch.Tensor) -> torch.Tensor:
    """(B, T, H) and (B,) -> (B, H). Not by arange(B), which an exported graph would freeze at its example's size."""
    return tokens.gather(1, place[:, None, None].expand(-1, -1, tokens.size(2)))[:, 0]
