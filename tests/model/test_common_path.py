"""What goes through NumPy is as torch has it but for rounding, and NumPy's own to the bit."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from resect.machine import portable

SCRIPT = """
import json, sys
from resect.machine.portable import pin
holds = pin().holds
import numpy as np, torch
from resect.model import take_path
torch.manual_seed(0)
a, b = torch.randn(37, 300), torch.randn(51, 300)
plain = a @ b.T
torch.set_num_threads(2)
take_path()
take_path()
found = {"holds": holds, "threads": torch.get_num_threads()}
left, right = a.clone().requires_grad_(), b.clone().requires_grad_()
product = torch.nn.functional.linear(left.view(1, 37, 300), right)
product.square().sum().backward()
exact = a.double() @ b.double().T
def near(x, y): return float((x.double() - y).abs().max() / y.abs().max())
found["numpy"] = np.array_equal(product.detach()[0].numpy(), a.numpy() @ b.numpy().T)
found["torch"] = torch.equal(product[0], plain)
found["product"] = near(product.detach()[0], exact)
found["left"] = near(left.grad, 2 * exact @ b.double())
found["right"] = near(right.grad, 2 * exact.T @ a.double())
for dtype in (torch.bfloat16, torch.float64, torch.int64):
    x, y = a.to(dtype), b.to(dtype)
    found[str(dtype)] = torch.equal(x @ y.T, torch.mm(x, y.T, out=x.new_empty(37, 51)))
# Rows with gaps, no rows, nothing to sum.
found["gaps"] = near(a[::2, ::3] @ b[:, ::3].T, a.double()[::2, ::3] @ b.double()[:, ::3].T)
found["no rows"] = list((a[:0] @ b.T).shape)
found["no sum"] = float((a[:, :0] @ b[:, :0].T).abs().sum())
with torch.inference_mode():
    found["inference"] = torch.equal(a @ b.T, product[0])
try:
    a @ b
except RuntimeError as error:
    found["shapes"] = "shapes" in str(error)
numbers = torch.rand(3, 1000, generator=torch.Generator().manual_seed(0)) + 0.1
def nearest(x):
    return torch.as_tensor(np.sqrt(x.double().numpy())).to(x.dtype)
found["nearest"] = torch.equal(numbers.sqrt(), nearest(numbers))
found["in place"] = torch.equal(numbers.clone().sqrt_(), nearest(numbers))
found["of a part"] = torch.equal(numbers.T[::7].sqrt(), nearest(numbers.T[::7]))
found["one number"] = torch.equal(numbers[0, 0].sqrt(), nearest(numbers[0, 0]))
found["layout"] = numbers.T.sqrt().stride() == numbers.T.stride()
found["below 0"] = torch.tensor([-1.0, 0.0]).sqrt().isnan().tolist()
found["whole"] = str(torch.tensor([4]).sqrt().dtype)
found["half"] = torch.equal(numbers.bfloat16().sqrt(), numbers.bfloat16().float().sqrt().bfloat16())
found["complex"] = str(torch.tensor([-4.0 + 0j]).sqrt().dtype)
for name, twin in {"atan": np.arctan, "log": np.log, "log2": np.log2, "log10": np.log10,
                   "tan": np.tan}.items():
    for dtype in (torch.float32, torch.float64):
        x = numbers.to(dtype, copy=True).requires_grad_()
        y = getattr(torch, name)(x)
        y.sum().backward()
        exact, eps = twin(x.detach().double().numpy()), torch.finfo(dtype).eps
        found[f"{name} {dtype}"] = near(y.detach(), torch.from_numpy(exact)) / eps
        moved = twin(x.detach().double().numpy() + 1e-6)
        found[f"slope of {name} {dtype}"] = near(x.grad, torch.from_numpy(moved - exact) / 1e-6)
print(json.dumps(found))
"""


def found(pinned: bool) -> dict[str, Any]:
    """Return what the script prints, with the common path or with the path that torch takes."""
    environment = {name: value for name, value in os.environ.items() if name != portable.MARK}
    script = SCRIPT if pinned else SCRIPT.replace("pin().holds", "False")
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", script],
        env=environment,
        capture_output=True,
        text=True,
        check=True,
        timeout=300,
    )
    values: dict[str, Any] = json.loads(done.stdout.splitlines()[-1])
    return values


able = pytest.mark.skipif(
    not portable._features() >= portable.NEEDED, reason="this processor has no AVX2"
)


@pytest.fixture(scope="module")
def values() -> dict[str, Any]:
    """What the script prints on the common path."""
    return found(pinned=True)


@able
def test_products_and_gradients_go_through_numpy(values: dict[str, Any]) -> None:
    assert values["holds"]
    # MKL's bits are others, or the first of these would show nothing.
    assert values["numpy"]
    assert not values["torch"]
    for name in ("product", "left", "right", "gaps"):
        assert values[name] < 1e-6, name
    for name in ("torch.bfloat16", "torch.float64", "torch.int64", "inference", "shapes"):
        assert values[name], name
    assert values["no rows"] == [0, 51]
    assert values["no sum"] == 0


@able
def test_functions_of_numbers_are_those_of_numpy(values: dict[str, Any]) -> None:
    for name in ("nearest", "in place", "of a part", "one number", "layout", "half"):
        assert values[name], name
    assert values["below 0"] == [True, False]
    assert values["whole"] == "torch.float32"
    assert values["complex"] == "torch.complex64"
    for name in ("atan", "log", "log2", "log10", "tan"):
        for dtype in ("torch.float32", "torch.float64"):
            assert values[f"{name} {dtype}"] <= 1, name
            assert values[f"slope of {name} {dtype}"] < 1e-4, name


@able
def test_one_thread_computes_whatever_the_number_of_workers(values: dict[str, Any]) -> None:
    # What several threads sum depends on how many there are, and workers share a machine's cores.
    assert values["threads"] == 1


def test_nothing_changes_where_the_path_was_not_taken() -> None:
    values = found(pinned=False)
    assert values["torch"]
    assert values["product"] < 1e-6
