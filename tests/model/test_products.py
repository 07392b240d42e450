"""Products by oneDNN: equal to the exact ones but for rounding, forward and backward."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from resect.cli.reproduce import _take_path_of
from resect.errors import InputError
from resect.files.origin import provenance
from resect.machine import portable, products

PRODUCTS = """
import json, sys
import torch
from resect.files.origin import provenance
from resect.model import products, take_path

take_path()
calls = []
by_onednn = products._by_onednn
products._by_onednn = lambda *tensors: calls.append(tensors[0].shape) or by_onednn(*tensors)
draw = torch.Generator().manual_seed(3)

def off(got, exact, sizes):
    # In roundings of the sum of sizes of what is added.
    return float(((got.double() - exact).abs() / sizes).max() * 2**24)

def random(*shape):
    return torch.randn(shape, generator=draw)

found = {"products": provenance().get("products"), "off": {}}
for rows, inner, columns in ((64, 256, 128), (5, 2048, 1024), (300, 64, 300)):
    left, right, bias = random(rows, inner), random(columns, inner), random(columns)
    left.requires_grad_(), right.requires_grad_(), bias.requires_grad_()
    for name, offset in (("plain", None), ("bias", bias)):
        left.grad = right.grad = None
        result = torch.nn.functional.linear(left[None], right, offset)[0]
        slope = random(rows, columns)
        result.backward(slope)
        a, b, g = left.detach().double(), right.detach().double(), slope.double()
        shift = 0 if offset is None else offset.detach().double()
        found["off"][f"{name} {rows}"] = max(
            off(result.detach(), a @ b.T + shift, a.abs() @ b.abs().T + abs(shift)),
            off(left.grad, g @ b, g.abs() @ b.abs()),
            off(right.grad, g.T @ a, g.abs().T @ a.abs()),
        )
found["calls"] = len(calls)
calls.clear()
small = random(1, 2048), random(2048, 1024)
found["small"] = off(small[0] @ small[1], small[0].double() @ small[1].double(),
                     small[0].double().abs() @ small[1].double().abs())
wide = random(200, 200).double()
found["double"] = str((wide @ wide).dtype)
half = wide.bfloat16() @ wide.bfloat16()
found["half"] = str(half.dtype)
scaled = torch.addmm(wide.float(), wide.float(), wide.float(), beta=2, alpha=3)
found["scaled"] = float((scaled - (2 * wide + 3 * wide @ wide).float()).abs().max())
found["others"] = len(calls)
try:
    random(300, 300) @ random(200, 300)
except RuntimeError as error:
    found["shapes"] = "cannot be multiplied" in str(error)
found["not a number"] = bool(
    (torch.full((128, 128), float("nan")) @ random(128, 128)).isnan().all()
)
print(json.dumps(found))
"""


def found(**settings: str) -> Any:
    names = (portable.MARK, *portable.PINS, products.CHOICE)
    environment = {name: value for name, value in os.environ.items() if name not in names}
    path = os.pathsep.join([str(Path(__file__).parents[1]), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-c", PRODUCTS],
        env=environment | {"PYTHONPATH": path} | settings,
        capture_output=True,
        text=True,
        check=True,
        timeout=500,
    )
    return json.loads(done.stdout)


@pytest.mark.parametrize("choice", ["onednn", "torch", ""])
def test_products_and_their_gradients_are_exact_but_for_rounding(choice: str) -> None:
    values = found(**({products.CHOICE: choice} if choice else {}))
    chosen = choice == "onednn"
    assert values["products"] == ("onednn" if chosen else None)
    # Each of six products with its two gradients, if they are large enough.
    assert values["calls"] == (18 if chosen else 0)
    assert max(values["off"].values()) < 8
    assert values["small"] < 8
    assert values["others"] == 0
    assert (values["double"], values["half"]) == ("torch.float64", "torch.bfloat16")
    assert values["scaled"] < 1e-2
    assert values["shapes"]
    assert values["not a number"]


def test_commands_choose_by_the_maker_and_libraries_do_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(products.CHOICE, raising=False)
    assert not products.are_by_onednn()
    listed = tmp_path / "cpuinfo"
    monkeypatch.setattr(products, "CPU", listed)
    for vendor, choice in (("AuthenticAMD", "onednn"), ("GenuineIntel", "torch"), (None, "torch")):
        monkeypatch.delenv(products.CHOICE, raising=False)
        if vendor is not None:
            listed.write_text(f"processor\t: 0\nvendor_id\t: {vendor}\n", encoding="utf-8")
        elif listed.exists():
            listed.unlink()
        products.choose_products()
        assert os.environ[products.CHOICE] == choice
        assert products.are_by_onednn() == (choice == "onednn")
    # What the user has said stands.
    monkeypatch.setenv(products.CHOICE, "onednn")
    products.choose_products()
    assert provenance()["products"] == "onednn"
    monkeypatch.setenv(products.CHOICE, "openblas")
    with pytest.raises(InputError, match="onednn or torch"):
        products.are_by_onednn()


def test_the_portable_mode_has_a_path_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(products.CHOICE, "onednn")
    for name, value in (portable.PINS | {portable.MARK: portable.PATH}).items():
        monkeypatch.setenv(name, value)
    for name in portable.DROPPED:
        monkeypatch.delenv(name, raising=False)
    assert not products.are_by_onednn()
    assert "products" not in provenance()


def test_a_library_that_is_not_there_leaves_torch(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    from resect.model import products as taken

    def missing(*_tensors: object) -> None:
        raise AttributeError("no such operator")

    monkeypatch.setenv(products.CHOICE, "onednn")
    monkeypatch.setattr(taken, "_by_onednn", missing)
    assert taken.take_onednn.__wrapped__() is None
    assert "so torch does" in caplog.text
    assert "products" not in provenance()
    monkeypatch.setattr(taken, "_by_onednn", lambda one, other, *_bias: 1.001 * (one @ other))
    assert not taken._works()


@pytest.mark.parametrize(
    ("manifest", "choice"), [({"products": "onednn"}, "onednn"), ({}, "torch")]
)
def test_a_run_is_reproduced_by_the_products_that_it_had(
    manifest: dict[str, str], choice: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(products.CHOICE, "torch" if choice == "onednn" else "onednn")
    (tmp_path / "manifest.json").write_text(json.dumps(manifest), encoding="utf-8")
    _take_path_of(tmp_path)
    assert os.environ[products.CHOICE] == choice
