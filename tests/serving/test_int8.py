from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import numpy_helper
from toys import WORDS, make_bert_encoder

from hf_xmc import Retriever
from hf_xmc.hub.server_xmc import OnnxServer, OpenVinoServer
from hf_xmc.serving.int8 import export_int8, quantize
from hf_xmc.serving.onnx import export_onnx

TEXTS = [f"{a} {b}" for a in WORDS for b in WORDS[::4]]


@pytest.fixture(scope="module")
def repo(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("int8")
    Retriever.build(make_bert_encoder(folder / "bert"), WORDS).save_pretrained(folder / "repo")
    export_onnx(folder / "repo")
    return folder / "repo"


def vectors(server: OnnxServer | OpenVinoServer) -> np.ndarray:
    return np.vstack([server.encode([text])[0] for text in TEXTS])


def rounded(weight: np.ndarray) -> np.ndarray:
    """Rows in blocks of 16 rounded to multiples of a 127th of the block's largest, which is told to 11 bits."""
    out = np.empty_like(weight)
    for i in range(len(weight)):
        for start in range(0, weight.shape[1], 16):
            block = weight[i, start : start + 16]
            step = np.float32(np.float16(np.abs(block).max() / 127)) or np.float32(1)
            out[i, start : start + 16] = np.clip(np.rint(block / step), -127, 127) * step
    return out


@pytest.mark.slow
def test_the_graph_of_8_bit_weights_is_that_of_the_rounded_weights(repo: Path) -> None:
    graph = onnx.load(repo / "onnx" / "model.onnx")
    report = export_int8(repo, TEXTS, agreement=0.01, num_threads=1)
    assert report.matrices == report.of_matrices == 6  # four of attention, two after it; the table has 608 weights
    matrices = {name for node in graph.graph.node if node.op_type == "MatMul" for name in node.input}
    changed = 0
    for each in graph.graph.initializer:
        if each.name in matrices:
            weight = numpy_helper.to_array(each)
            each.CopyFrom(numpy_helper.from_array(np.ascontiguousarray(rounded(weight.T).T), each.name))
            changed += 1
    assert changed == 6
    onnx.save(graph, repo / "onnx" / "rounded.onnx")
    expected = vectors(OnnxServer(repo, "rounded.onnx", num_threads=1))
    assert not np.allclose(expected, vectors(OnnxServer(repo, num_threads=1)), atol=1e-5)
    for server in (OnnxServer, OpenVinoServer):
        np.testing.assert_allclose(vectors(server(repo, "model_int8.onnx", num_threads=1)), expected, atol=1e-5)


@pytest.mark.slow
def test_as_many_matrices_are_8_bits_as_keep_the_answers(repo: Path) -> None:
    report = export_int8(repo, TEXTS, agreement=0.97, top_k=3, num_threads=1)
    servers = OnnxServer(repo, num_threads=1), OnnxServer(repo, "model_int8.onnx", num_threads=1)
    sets = [[{label["label_id"] for label in answer} for answer in server(TEXTS, 3)] for server in servers]
    share = float(np.mean([ours == theirs for ours, theirs in zip(*sets, strict=True)]))
    assert share == pytest.approx(report.agreement) and share >= 0.97 and report.matrices >= 1
    stored = onnx.load(repo / "onnx" / "model_int8.onnx").graph.initializer
    assert sum(each.data_type == onnx.TensorProto.INT8 for each in stored) == report.matrices


@pytest.mark.slow
def test_a_token_table_is_looked_up_in_8_bits(repo: Path) -> None:
    graph = onnx.load(repo / "onnx" / "model.onnx")
    (table,) = [each.name for each in graph.graph.initializer if list(each.dims) == [len(WORDS) + 2, 32]]
    onnx.save(quantize(graph, [table]), repo / "onnx" / "table.onnx")
    for each in graph.graph.initializer:
        if each.name == table:
            each.CopyFrom(numpy_helper.from_array(rounded(numpy_helper.to_array(each)), table))
    onnx.save(graph, repo / "onnx" / "rounded.onnx")
    expected = vectors(OnnxServer(repo, "rounded.onnx", num_threads=1))
    np.testing.assert_allclose(vectors(OnnxServer(repo, "table.onnx", num_threads=1)), expected, atol=1e-6)


@pytest.mark.parametrize(("texts", "agreement"), [([], 0.9), (["a"], 0.0), (["a"], 1.1)])
def test_what_cannot_choose_is_refused(texts: list[str], agreement: float, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=rf"got {len(texts)} texts and {agreement}"):
        export_int8(tmp_path, texts, agreement=agreement)
    for wrong in (None, 3, ["war", None], {"a": "war"}):
        with pytest.raises(ValueError, match="texts must be"):
            export_int8(tmp_path, wrong)
