"""The portable mode: set before torch is loaded, over the user's settings, and the same bits."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from resect.files import origin
from resect.machine import portable

TRAINED = """
import hashlib, json, sys, tempfile
from resect.machine.portable import pin
state = pin() if sys.argv[1] == "pinned" else None
from resect.files.origin import provenance
from resect.organism import Recipe, build
from safetensors.torch import load_file
with tempfile.TemporaryDirectory() as folder:
    built = build(seed=0, stages=("aligned",), recipe=Recipe.tiny(), root=folder + "/zoo")
    digest = hashlib.sha256()
    for name, tensor in sorted(load_file(built.stage("aligned") / "model.safetensors").items()):
        digest.update(name.encode() + tensor.numpy().tobytes())
    origin = json.loads((built.root / "organism.json").read_text())
print(json.dumps({
    "weights": digest.hexdigest(), "portable": provenance()["portable"],
    "noted": origin["portable"], "state": state and state.holds, "root": str(built.root),
}))
"""
# Of the tiny organism of seed 0, stage `aligned`, by what this torch makes of it.
TORCH = "2.13"
WEIGHTS = "be1a85cb79e13b87b4c1921593fde1d17cf283193c15125d8b59da7fc9d465ce"
# The libraries see fewer instructions; the C library's own mathematics too.
LIMITS = {
    "ATEN_CPU_CAPABILITY": "default",
    "MKL_ENABLE_INSTRUCTIONS": "SSE4_2",
    "ONEDNN_MAX_CPU_ISA": "SSE41",
    "OPENBLAS_CORETYPE": "Nehalem",
}

able = pytest.mark.skipif(
    not portable._features() >= portable.NEEDED, reason="this processor has no AVX2"
)


def python(script: str, *words: str, **settings: str) -> Any:
    environment = {name: value for name, value in os.environ.items() if name != portable.MARK}
    done = subprocess.run(
        [sys.executable, "-c", script, *words],
        env=environment | settings,
        capture_output=True,
        text=True,
        check=True,
        timeout=500,
    )
    return json.loads(done.stdout.splitlines()[-1])


PIN = """
import json, os, sys
{first}
from resect.machine.portable import DROPPED, MARK, PINS, pin
loaded = "torch" in sys.modules
state = pin()
print(json.dumps({{
    "holds": state.holds, "reason": state.reason, "loaded": loaded, "mark": MARK in os.environ,
    "pinned": all(os.environ.get(name) == value for name, value in PINS.items()),
    "left": [name for name in DROPPED if name in os.environ], "again": pin().holds,
}}))
"""


@able
def test_the_common_path_goes_over_what_the_user_set() -> None:
    found = python(PIN.format(first=""), **LIMITS)
    assert found == {
        "holds": True, "reason": "", "loaded": False, "mark": True, "pinned": True, "left": [],
        "again": True,
    }  # fmt: skip


@able
def test_it_says_when_it_comes_too_late() -> None:
    found = python(PIN.format(first="import numpy"), **LIMITS)
    assert not found["holds"]
    assert found["reason"] == "numpy had been loaded with other settings"
    assert not found["mark"]
    assert not found["pinned"]
    # A mark without the settings that it stands for is no promise.
    forged = python(PIN.format(first="import numpy"), **{portable.MARK: portable.PATH})
    assert not forged["holds"]
    assert not forged["mark"]


def test_provenance_looks_for_the_mark() -> None:
    assert origin.PORTABLE == portable.MARK


def test_it_says_what_the_machine_lacks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "_features", lambda: {"sse4_2"})
    assert "AVX2" in portable.pin().reason
    monkeypatch.setattr("platform.machine", lambda: "arm64")
    assert "arm64" in portable.pin().reason
    assert portable.MARK not in os.environ


@able
def test_another_library_for_products_is_no_common_path(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(portable, "READERS", ())
    monkeypatch.setattr(portable, "_blas", lambda: "mkl")
    for name in (*portable.PINS, portable.MARK):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Zen")
    monkeypatch.setenv("MKL_DEBUG_CPU_TYPE", "5")
    before = dict(os.environ)
    state = portable.pin()
    assert not state.holds
    assert state.reason == "NumPy multiplies by mkl here and not by scipy-openblas"
    assert dict(os.environ) == before


@able
def test_workers_inherit_the_path() -> None:
    settings = {**portable.PINS, portable.MARK: portable.PATH}
    found = python(PIN.format(first="import numpy"), **settings)
    assert found["holds"]


@able
@pytest.mark.skipif(
    not torch.__version__.startswith(TORCH), reason=f"the hash is that of torch {TORCH}"
)
def test_the_tiny_organism_has_the_same_bits_whatever_the_processor() -> None:
    plain = python(TRAINED, "pinned")
    limited = python(TRAINED, "pinned", **LIMITS)
    assert plain["portable"] is plain["noted"] is plain["state"] is True
    assert limited["weights"] == plain["weights"] == WEIGHTS
    # Without the common path the limits show, or the test above would prove nothing.
    native = python(TRAINED, "native", **LIMITS)
    assert native["portable"] is native["noted"] is False
    assert native["weights"] != WEIGHTS
