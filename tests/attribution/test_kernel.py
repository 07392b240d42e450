"""The Triton kernel equals the plain formula; on the CPU, in Triton's interpreter.

What this cannot see: whether the compiled kernel is right and quick on a GPU. That it compiles for
one is checked without one.
"""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("triton")

TESTS = Path(__file__).parent.parent

# The interpreter is chosen when Triton is imported, so it needs a process of its own.
FORMULA = """
import torch
from resect.attribution import kernel

draw = torch.Generator().manual_seed(0)
for dtype in (torch.float32, torch.bfloat16, torch.float16):
    for rows, columns, lengths in ((1, 3, (7,)), (64, 64, (32, 32)), (70, 131, (5, 33, 1, 64))):
        left = [torch.randn(t, rows, generator=draw).to(dtype) for t in lengths]
        right = [torch.randn(t, columns, generator=draw).to(dtype) for t in lengths]
        each = [a.float().T @ b.float() for a, b in zip(left, right)]
        sizes = 2 + torch.stack(each).abs().sum(dim=0)
        squares = 3 + torch.stack(each).square().sum(dim=0)
        assert kernel.usable(left[0])
        for wanted in (("absolute",), ("square",), ("absolute", "square")):
            start = {"absolute": torch.full_like(sizes, 2), "square": torch.full_like(squares, 3)}
            kernel.add_sums(left, right, **{kind: start[kind] for kind in wanted})
            for kind, expected in (("absolute", sizes), ("square", squares)):
                untouched = torch.full_like(expected, 2 if kind == "absolute" else 3)
                # Products of 16-bit numbers are exact in fp32; what differs is the order of sums.
                torch.testing.assert_close(
                    start[kind], expected if kind in wanted else untouched, rtol=1e-5, atol=1e-4
                )
assert not kernel.usable(torch.zeros(1, dtype=torch.float64))
"""

ENGINE = """
import torch
import tiny
from resect.attribution import AttributeSettings, attribute_many
from resect.attribution import kernel

calls = []
plain = kernel.add_sums
kernel.add_sums = lambda *a, **k: (calls.append(len(a[0])), plain(*a, **k))
found = {}
for fused in (True, False):
    kernel.usable = lambda _tensor, fused=fused: fused
    for method, reduction in (("snip", "mean_of_abs"), ("fisher", "signed")):
        found[fused, method] = attribute_many(
            tiny.build("gpt2" if method == "fisher" else "llama"), tiny.tokenizer(),
            tiny.examples(7), reductions=(reduction,),
            settings=AttributeSettings(method=method, dense=True, batch_size=3),
        )[reduction]
assert set(calls) == {1, 3}, calls  # the first batch is checked against autograd, by tiles
for method in ("snip", "fisher"):
    for name, tensor in found[True, method].tensors.items():
        other = found[False, method].tensors[name]
        dense = [torch.zeros(t.size).index_put((t.index,), t.value) for t in (tensor, other)]
        torch.testing.assert_close(*dense, rtol=1e-4, atol=1e-6 * float(dense[1].abs().max()))
"""

COMPILE = """
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from resect.attribution import kernel

flags = {"ABSOLUTE": True, "SQUARE": True, "WIDEN": False, "BLOCK": kernel.BLOCK,
         "STEP": kernel.STEP}
for kind in ("fp32", "bf16"):
    types = {"left": f"*{kind}", "right": f"*{kind}", "ends": "*i32", "absolute": "*fp32",
             "square": "*fp32", "examples": "i32", "rows": "i32", "columns": "i32",
             **dict.fromkeys(flags, "constexpr")}
    built = triton.compile(ASTSource(kernel._kernel(), types, flags), GPUTarget("cuda", 90, 32))
    assert "ld.global" in built.asm["ptx"]
"""


@pytest.mark.parametrize(
    ("code", "interpret"),
    [(FORMULA, "1"), (ENGINE, "1"), (COMPILE, "0")],
    ids=["formula", "engine", "compiles"],
)
def test_kernel(code: str, interpret: str, tmp_path: Path) -> None:
    triton = {"TRITON_INTERPRET": interpret, "TRITON_CACHE_DIR": str(tmp_path)}
    path = os.pathsep.join([str(TESTS), *sys.path])
    done = subprocess.run(
        [sys.executable, "-c", code],
        env={**os.environ, **triton, "PYTHONPATH": path},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
