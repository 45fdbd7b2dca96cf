"""The kernels of the CUDA path equal plain torch, in Triton's interpreter, and compile for a GPU that is not here.

Triton reads TRITON_INTERPRET when it is first imported, which other libraries do early: this file runs itself in
another process and compares what that process saved.
"""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from forks import Forks
from torch import Tensor

pytestmark = pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="Triton is not installed")

# Two blocks of rows, three tiles of labels, and a width that is no multiple of a block in any direction.
NUM_ROWS, NUM_LABELS, DIM, SCALE = 131, 260, 40, 20.0
KERNELS = Path(__file__).parents[2] / "src" / "hf_xmc" / "losses" / "streaming" / "triton_kernels.py"
DTYPES = [torch.float32, torch.bfloat16]
NAMES = {
    torch.float32: ["decoupled_softmax", "info_nce", "binary_cross_entropy", "soft_top_k"],
    torch.bfloat16: ["decoupled_softmax"],
}
SHAPES = ["EXP", "SIGMOID", "BELL"]


def inputs(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Queries, labels, hidden pairs, positives: row 7 is all hidden, the last label is a positive of the last row."""
    generator = torch.Generator().manual_seed(0)
    queries, labels = (F.normalize(torch.randn(n, DIM, generator=generator), dim=1) for n in (NUM_ROWS, NUM_LABELS))
    hidden = torch.rand(NUM_ROWS, NUM_LABELS, generator=generator) < 0.02
    positives = torch.rand(NUM_ROWS, NUM_LABELS, generator=generator) < 0.01
    hidden[7] = True
    positives[-1, -1] = True
    hidden[-1, -1] = False
    return queries.to(dtype), labels.to(dtype), hidden, positives


def csr(mask: Tensor) -> tuple[Tensor, Tensor]:
    return torch.cat([torch.zeros(1, dtype=torch.int64), mask.sum(dim=1).cumsum(0)]), mask.nonzero()[:, 1]


def interpret(path: str) -> None:
    """What the kernels give and what torch gives in float64, by name."""
    from hf_xmc.losses import blockwise, functional
    from hf_xmc.losses.streaming import chunks
    from hf_xmc.losses.streaming import triton_kernels as kernels

    chunks.kernels_can_run = lambda queries: True
    chunks.cpu_prefers_bfloat16 = lambda: True
    tiles_made = []
    make_tile = kernels.derivative_tile
    kernels.derivative_tile = lambda *arguments: tiles_made.append(0) or make_tile(*arguments)
    results = {}
    for dtype in DTYPES:
        queries, labels, hidden, positives = inputs(dtype)
        masked = (SCALE * queries.double() @ labels.double().T).masked_fill(hidden, -torch.inf)
        pairs = positives.nonzero(as_tuple=True)
        buckets = [kernels.Buckets.of(*m.nonzero(as_tuple=True), NUM_ROWS, NUM_LABELS) for m in (hidden, positives)]
        largest, total = kernels.log_sum_exp(queries, labels, SCALE, buckets[0])
        results["log_sum_exp", dtype] = (largest + total.log(), masked.logsumexp(dim=1))
        offset = torch.linspace(-3, 3, NUM_ROWS)
        probability = torch.sigmoid(0.5 * masked + offset[:, None])
        sums = kernels.sigmoid_sums(queries, labels, SCALE, buckets[0], offset, 0.5)
        results["sigmoid_sums", dtype] = (
            torch.stack(sums),
            torch.stack([probability.sum(dim=1), (probability * (1 - probability)).sum(dim=1)]),
        )
        offsets, factors = torch.stack([offset, -offset], dim=1) - 10, torch.rand(NUM_ROWS, 2) - 0.5
        grads = torch.rand(len(pairs[0])) + 1
        for shape in chunks.Shape:
            tiles = [
                kernels.derivative_tile(
                    queries, labels, SCALE, *buckets, grads, int(shape), 0.5, offsets, factors, slice(start, stop)
                )
                for start, stop in ((0, 128), (128, NUM_LABELS))
            ]
            derivative = chunks.Derivative(shape, 0.5, offsets.double(), factors.double())
            expected = derivative.of(masked, torch.empty_like(masked))
            expected[pairs] += grads
            results[shape.name, dtype] = (torch.cat(tiles, dim=1), expected)
        for name in NAMES[dtype]:
            options = {"k": 5} if name == "soft_top_k" else {}
            leaves = [part.clone().requires_grad_() for part in (queries, labels)]
            pairs_of = {"positives": csr(positives), "excluded": csr(hidden)}
            num_tiles = len(tiles_made)
            # No memory for scores: kept ones would be read without a kernel.
            loss = getattr(blockwise, name)(*leaves, **pairs_of, scale=SCALE, memory_budget=0, **options)
            assert len(tiles_made) > num_tiles
            loss.backward()
            wide = [part.double().requires_grad_() for part in (queries, labels)]
            dense = getattr(functional, name)(SCALE * wide[0] @ wide[1].T, positives, excluded=hidden, **options)
            dense.backward()
            results[name, dtype] = (
                torch.cat([part.detach().double().flatten() for part in (loss, *(leaf.grad for leaf in leaves))]),
                torch.cat([part.detach().flatten() for part in (dense, *(leaf.grad for leaf in wide))]),
            )
    torch.save(results, path)


def compile_for_hopper() -> None:
    """Compile every kernel for compute capability 9.0 as the library calls it with bfloat16."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    # The file alone: the package around it takes longer to import than the kernels to compile.
    spec = importlib.util.spec_from_file_location("triton_kernels", KERNELS)
    kernels = sys.modules["triton_kernels"] = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(kernels)

    pointers = {"hidden_rows": "*i32", "hidden_columns": "*i32", "hidden_starts": "*i64"}
    pointers |= {name.replace("hidden", "positive"): kind for name, kind in pointers.items()}
    pointers |= dict.fromkeys(("queries", "labels", "out"), "*bf16")
    pointers |= dict.fromkeys(("first", "second", "offset", "factor", "grad_positives"), "*fp32")
    pointers |= {"scale": "fp32", "alpha": "fp32"}
    shared = {"DIM": 768, "PRECISION": "tf32", "WIDEN": False}
    variants = [(kernels._reduce_kernel, {"SIGMOIDS": flag}) for flag in (True, False)]
    variants += [(kernels._derivative_kernel, {"SHAPE": shape.value, "K": 1}) for shape in (kernels.EXP, kernels.BELL)]
    for kernel, own in variants:
        constants = shared | own
        names = kernel.arg_names
        signature = {name: "constexpr" if name in constants else pointers.get(name, "i32") for name in names}
        source = ASTSource(kernel, signature, {(names.index(name),): value for name, value in constants.items()})
        compiled = triton.compile(source, target=GPUTarget("cuda", 90, 32), options={"num_warps": 8})
        assert len(compiled.asm["cubin"]) > 0


@pytest.fixture(scope="module")
def results(forks: Forks, tmp_path_factory: pytest.TempPathFactory) -> dict:
    path = tmp_path_factory.mktemp("triton") / "results.pt"
    forks.run("import runpy, sys; runpy.run_path(sys.argv[1])['interpret'](sys.argv[2])", __file__, path)
    return torch.load(path)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", ["log_sum_exp", "sigmoid_sums", *SHAPES])
def test_kernels_equal_torch(results: dict, name: str, dtype: torch.dtype) -> None:
    found, expected = results[name, dtype]
    assert expected[expected.isfinite()].abs().max() > 1
    # Only a tile that is written in bfloat16 is rounded to it; the sums are float32.
    tolerance = 1e-2 if name in SHAPES and dtype == torch.bfloat16 else 1e-5
    torch.testing.assert_close(found.double(), expected, atol=tolerance, rtol=tolerance)


@pytest.mark.parametrize(("dtype", "name"), [(dtype, name) for dtype in DTYPES for name in NAMES[dtype]])
def test_losses_through_the_kernels_equal_dense_ones(results: dict, dtype: torch.dtype, name: str) -> None:
    found, expected = results[name, dtype]
    assert expected[1:].abs().max() > 1e-3
    tolerance = 1e-2 if dtype == torch.bfloat16 else 3e-6
    assert (found[0] - expected[0]).abs() <= tolerance * expected[0]
    assert (found[1:] - expected[1:]).norm() <= tolerance * expected[1:].norm()


def test_kernels_compile_for_a_gpu(tmp_path: Path) -> None:
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
    environment |= {"TRITON_INTERPRET": "0", "TRITON_CACHE_DIR": str(tmp_path)}
    done = subprocess.run([sys.executable, __file__], env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr


if __name__ == "__main__":
    compile_for_hopper()
