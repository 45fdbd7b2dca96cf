"""XMCEncoder: a SentenceTransformer that may carry a label classifier, and still loads as a plain one."""

from __future__ import annotations

import json
from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Dense, InputModule, Normalize
from sentence_transformers.sentence_transformer.modules import Dropout, StaticEmbedding
from sentence_transformers.util import load_file_path
from torch import nn

from hf_xmc.encoders.classifier import JOINT_EMBEDDING, LabelClassifier, hub_options
from hf_xmc.encoders.prompts import encode_options, prompt_of
from hf_xmc.encoders.shared_static import SharedStaticEmbedding
from hf_xmc.hub.checks_xmc import checked_texts
from hf_xmc.hub.repo_xmc import CONFIG_FILE, FORMAT_VERSION, SETTINGS_FILE, SearchForm, check_version, cut_to

# What encode_halves reads itself where it does without encode, and the texts it then runs at once.
_DIRECT_OPTIONS = {"prompt", "task", "batch_size", "show_progress_bar"}
_STATIC_TEXTS_AT_ONCE = 4096


class XMCEncoder(SentenceTransformer):
    """A text encoder for labels and queries, from any sentence-transformers or Hugging Face encoder.

    ``sentence_embedding`` always has unit length (a Normalize module is appended where none is), so a dot product is a
    cosine. With :meth:`add_classifier` a text has a second vector, ``classifier_embedding``, that meets the rows of a
    :class:`~hf_xmc.LabelClassifier`.

    A saved folder opens with ``SentenceTransformer(folder)``, without a flag, as the dual encoder alone; our own
    module is listed in ``xmc_config.json`` instead of ``modules.json``.

    Args: those of ``sentence_transformers.SentenceTransformer``.

    Raises:
        ValueError: if the folder was saved by a newer format version, or its classifier is announced but missing.
    """

    # Read by the host when it loads checkpoints of the trainer; private there, see tests/test_encoder.py.
    _module_classes: dict[str, type[LabelClassifier]] = {
        f"{LabelClassifier.__module__}.{LabelClassifier.__name__}": LabelClassifier,
        "hf_xmc.classifier.LabelClassifier": LabelClassifier,  # repos saved before 0.2
    }

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self.search_form = SearchForm()
        super().__init__(*args, **kwargs)
        if not any(isinstance(m, Normalize) and m.module_output_name == "sentence_embedding" for m in self):
            self.add_module(str(len(self)), Normalize().to(self.device))

    @property
    def label_classifier(self) -> LabelClassifier | None:
        """The classifier, or None for a dual encoder alone."""
        return next((module for module in self if isinstance(module, LabelClassifier)), None)

    @property
    def shares_vector(self) -> bool:
        """Whether the classifier, if there is one, meets ``sentence_embedding`` itself."""
        return not any(getattr(module, "module_output_name", None) == "classifier_embedding" for module in self)

    def add_classifier(
        self,
        num_labels: int,
        dimension: int | None,
        *,
        encoder_dimension: int | None = None,
        residual: bool = False,
        dropout: float = 0.1,
    ) -> None:
        """Give the encoder UniDEC's two heads and a row per label (Kharbanda et al., WWW 2025).

        The dual-encoder head is g1 = Linear, Tanh, Dropout, unit norm; the classifier head g2 = Linear, Dropout,
        left un-normalised in training.

        Args:
            num_labels: L, the number of labels.
            dimension: Width of ``classifier_embedding`` and of the rows; None adds no g2: the rows meet the encoder's
                own unit vector, and the index keeps one vector a label in place of two.
            encoder_dimension: Width of g1; None keeps the encoder's own vector and adds no g1.
            residual: Rows are g2(label text) + eta, eta = 0 at the start.
            dropout: Dropout probability of the heads and rows.

        Raises:
            ValueError: If there is a classifier already, or the encoder does not tell the width of its vectors.
        """
        if self.label_classifier is not None:
            raise ValueError("this encoder has a classifier already; build a new XMCEncoder to change its size")
        width = self.get_embedding_dimension()
        if width is None:
            raise ValueError("this encoder does not tell the width of its vectors, which the heads are made for")
        body = [(name, module) for name, module in self.named_children() if not isinstance(module, Normalize)]
        # g2 reads sentence_embedding before g1 overwrites it.
        heads: list[tuple[str, nn.Module]] = []
        if dimension is not None:
            head = Dense(width, dimension, activation_function=None, module_output_name="classifier_embedding")
            heads.append(("classifier_head", head))
        if encoder_dimension is not None:
            heads.append(("encoder_head", Dense(width, encoder_dimension, activation_function=nn.Tanh())))
            heads.append(("encoder_dropout", Dropout(dropout)))
        heads.append(("encoder_norm", Normalize()))
        rows_dimension = dimension or encoder_dimension or width
        heads.append(("classifier", LabelClassifier(num_labels, rows_dimension, residual, dropout)))
        device = self.device
        self._modules = OrderedDict(body + [(name, module.to(device)) for name, module in heads])

    def fold(self) -> bool:
        """Replace modules made for training by what is published: a table of shared vectors by a plain one.

        The vectors of texts stay the same; :class:`~hf_xmc.XMCTrainer` does it when it has trained. Returns whether
        anything was replaced.
        """
        shared = {name: module for name, module in self.named_children() if isinstance(module, SharedStaticEmbedding)}
        for name, module in shared.items():
            self._modules[name] = module.fold().train(self.training)
        return bool(shared)

    # -- vectors for search -------------------------------------------------------------------------------------------

    def query_vectors(self, texts: Sequence[str], **encode: Any) -> np.ndarray:
        """Vectors of queries, with the model's query prompt, to search an index of :meth:`label_vectors` with.

        Args:
            texts: N strings.
            encode: Passed to ``SentenceTransformer.encode`` (batch_size, show_progress_bar, prompt_name, ...).

        Returns:
            (N, D) float32; with a classifier ``[(1 - u) e ; u c]``, see :class:`SearchForm`.
        """
        return self.join_queries(*self.encode_halves(texts, **encode_options(self, "query", encode)))

    def label_vectors(self, texts: Sequence[str], **encode: Any) -> np.ndarray:
        """Vectors of all L labels in id order: (L, D) float32; with a classifier ``[e ; w]``."""
        return self.join_labels(*self.label_halves(texts, **encode))

    def key_vectors(self, texts: Sequence[str], **encode: Any) -> np.ndarray:
        """Training rows as keys beside :meth:`label_vectors`: encoded as queries are, with the query prompt.

        Returns:
            (N, D) float32; with a classifier ``[e ; c]``. Unlike queries keys carry no weight of the search form, so
            that ``query . key`` is the weighted sum of both halves' products.
        """
        return self.join_labels(*self.encode_halves(texts, **encode_options(self, "query", encode)))

    def label_halves(self, texts: Sequence[str], **encode: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """Dual-encoder vectors (L, De) and classifier rows (L, Dc) or None, both float32, of all L labels in id order.

        Raises:
            ValueError: if the encoder has a classifier for another number of labels.
        """
        texts = checked_texts(texts)
        encoder_half, head = self.encode_halves(texts, **encode_options(self, "document", encode))
        classifier = self.label_classifier
        if classifier is None:
            return encoder_half, None
        if len(texts) != classifier.num_targets:
            raise ValueError(f"the classifier has {classifier.num_targets} rows, got {len(texts)} label texts")
        rows = classifier.rows.weight.detach().float().cpu().numpy()
        return encoder_half, rows + head if classifier.residual else rows.copy()

    def join_queries(self, encoder_half: np.ndarray, classifier_half: np.ndarray | None) -> np.ndarray:
        """(N, De) and (N, Dc) -> (N, De + Dc), weighted by the search form."""
        return self.search_form.join_queries(encoder_half, None if self.shares_vector else classifier_half)

    def join_labels(self, encoder_half: np.ndarray, classifier_half: np.ndarray | None) -> np.ndarray:
        """(L, De) and (L, Dc) -> (L, De + Dc), or (L, D) where both halves of a query are one vector."""
        return self.search_form.join_labels(encoder_half, classifier_half, self.shares_vector)

    def encode_halves(self, texts: Sequence[str], **encode: Any) -> tuple[np.ndarray, np.ndarray | None]:
        """``sentence_embedding`` (N, De) and, with a classifier, ``classifier_embedding`` (N, Dc), float32.

        Each distinct text is encoded once. A static encoder, whose work is less than the bookkeeping of ``encode``,
        is run without it where ``encode`` holds nothing but a prompt and a batch size. With ``truncate_dim`` the first
        vector is cut, and made of unit length again.

        Raises:
            ValueError: For what is no text, or if ``truncate_dim`` cuts vectors that classifier rows meet.
        """
        texts = checked_texts(texts)
        if texts and self._can_skip_encode(encode):
            return self._static_halves(texts, encode.get("prompt"))
        place: dict[str, int] = {}
        inverse = np.array([place.setdefault(text, len(place)) for text in texts], dtype=np.int64)
        unique = list(place)
        classifier, width = self.label_classifier, encode.get("truncate_dim", self.truncate_dim)
        if classifier is None or self.shares_vector:
            if classifier is not None and width is not None and width < classifier.dimension:
                raise ValueError(
                    f"truncate_dim={width} cuts the vectors that classifier rows of {classifier.dimension} numbers "
                    "meet; leave it out, or give the classifier a head of its own: add_classifier(dimension=...)"
                )
            vectors = np.asarray(self.encode(unique, **encode), dtype=np.float32)[inverse]
            vectors = cut_to(vectors, width)
            return vectors, None if classifier is None else vectors
        both = self.encode(unique, output_value=JOINT_EMBEDDING, **encode)  # type: ignore[call-overload]
        joint = torch.stack(both).float().cpu().numpy()[inverse]
        split = joint.shape[1] - classifier.dimension
        first = np.ascontiguousarray(joint[:, :split])
        return cut_to(first, width), np.ascontiguousarray(joint[:, split:])

    def _can_skip_encode(self, encode: dict[str, Any]) -> bool:
        plain = self.truncate_dim is None and self.default_prompt_name is None
        return plain and isinstance(self[0], StaticEmbedding) and encode.keys() <= _DIRECT_OPTIONS

    @torch.inference_mode()
    def _static_halves(self, texts: list[str], prompt: str | None) -> tuple[np.ndarray, np.ndarray | None]:
        if self.training:
            self.eval()
        outs, table = [], cast(InputModule, self[0])
        for start in range(0, len(texts), _STATIC_TEXTS_AT_ONCE):
            features = table.preprocess(texts[start : start + _STATIC_TEXTS_AT_ONCE], prompt=prompt)
            outs.append(self({key: value.to(self.device) for key, value in features.items()}))
        vectors = _column(outs, "sentence_embedding")
        if self.label_classifier is None or self.shares_vector:
            return vectors, None if self.label_classifier is None else vectors
        return vectors, _column(outs, "classifier_embedding")

    # -- saving and loading -------------------------------------------------------------------------------------------

    def save(self, path: str, *args: Any, **kwargs: Any) -> None:
        """Write the folder, our own module listed apart from those that the host may load."""
        super().save(path, *args, **kwargs)
        # The host fills in empty prompts when it loads a folder: those of both tasks are written down.
        settings_file = Path(path) / SETTINGS_FILE
        settings = json.loads(settings_file.read_text(encoding="utf8"))
        settings["prompts"] |= {task: prompt_of(self, task) or "" for task in ("query", "document")}
        settings_file.write_text(json.dumps(settings, indent=2), encoding="utf8")
        own = XMCEncoder._module_classes
        modules_file = Path(path) / "modules.json"
        rows = json.loads(modules_file.read_text(encoding="utf8"))
        modules_file.write_text(json.dumps([r for r in rows if r["type"] not in own], indent=2), encoding="utf8")
        config = {
            "format_version": FORMAT_VERSION,
            "modules": [r for r in rows if r["type"] in own],
            "search": asdict(self.search_form),
        }
        (Path(path) / CONFIG_FILE).write_text(json.dumps(config, indent=2), encoding="utf8")

    def _get_model_config(self) -> dict[str, Any]:
        # Announced in a file that a plain SentenceTransformer fetches too, so that a half-cached repo is noticed.
        return super()._get_model_config() | {"xmc": {"classifier": self.label_classifier is not None}}

    def _parse_model_config(self, model_config: dict[str, Any]) -> None:
        super()._parse_model_config(model_config)
        self._announced: dict[str, Any] = model_config.get("xmc", {})

    def _load_config_modules(  # type: ignore[override]
        self, model_name_or_path: str, **kwargs: Any
    ) -> tuple[Any, dict[str, Any]]:
        self._announced = {}
        modules, module_kwargs = super()._load_config_modules(model_name_or_path, **kwargs)
        hub = hub_options(kwargs)
        file = load_file_path(model_name_or_path, CONFIG_FILE, **hub)
        if file is None:
            if self._announced.get("classifier"):
                raise ValueError(
                    f"{model_name_or_path} announces a classifier but {CONFIG_FILE} is missing; "
                    "fetch the whole repo (drop local_files_only, or snapshot_download it)"
                )
            return modules, module_kwargs
        config = json.loads(Path(file).read_text(encoding="utf8"))
        check_version(config.get("format_version"), file)
        self.search_form = SearchForm(**config.get("search", {}))
        for row in config["modules"]:
            module_class = XMCEncoder._module_classes[row["type"]]
            modules[row["name"]] = module_class.load(model_name_or_path, subfolder=row["path"], **hub)
        return modules, module_kwargs


def dual_vectors(model: SentenceTransformer, texts: Sequence[str], task: str, **encode: Any) -> np.ndarray:
    """The dual encoder's vectors (N, D) float32 of unit length, of ours and of any other sentence-transformers model.

    Args:
        model: Any; of an :class:`XMCEncoder` the classifier is left aside.
        texts: N strings.
        task: "query" or "document", whose prompt is put before each text.
        encode: Passed to ``encode``.
    """
    options = encode_options(model, task, encode)
    if isinstance(model, XMCEncoder):
        return model.encode_halves(texts, **options)[0]
    return np.asarray(model.encode(checked_texts(texts), normalize_embeddings=True, **options), dtype=np.float32)


def _column(outs: list[dict[str, torch.Tensor]], key: str) -> np.ndarray:
    return torch.cat([out[key] for out in outs]).float().cpu().numpy()
