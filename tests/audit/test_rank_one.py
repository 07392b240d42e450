"""The weight-recovery energy of a change: the matrices that count, and one direction's share."""

from __future__ import annotations

import copy
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers

import tiny
from resect.audit import AuditRequest, audit_models, rank_one
from resect.audit.rank_one import rank_one_shares, top_share
from resect.files.reading import read_json
from resect.model import prunable_tensors
from resect.report.audit import build_audit_report


def moved(model: Any, rank: int | None) -> Any:
    """Return a copy whose matrices have changed: everywhere, or by an edit of low rank."""
    tuned = copy.deepcopy(model)
    draw = torch.Generator().manual_seed(5)
    for weight in prunable_tensors(tuned).values():
        noise = torch.randn(weight.shape, generator=draw)
        if rank is not None:
            rows, columns = weight.shape
            noise = torch.randn(rows, rank, generator=draw) @ torch.randn(
                rank, columns, generator=draw
            )
        weight.add_(0.01 * noise)
    return tuned


@pytest.mark.parametrize(
    ("architecture", "endings"),
    [
        ("llama", {"o_proj.weight", "down_proj.weight"}),
        ("gpt2", {"attn.c_proj.weight", "mlp.c_proj.weight"}),
    ],
)
def test_what_writes_to_the_stream_is_looked_at_as_defined(
    architecture: str, endings: set[str]
) -> None:
    model = tiny.build(architecture)
    tuned = prunable_tensors(moved(model, None))
    shares = rank_one_shares(model, tuned)
    assert {name for name in tuned if name.endswith(tuple(endings))} == set(shares)
    assert len(shares) == 4  # two matrices in each of two blocks
    for name, share in shares.items():
        delta = (tuned[name] - prunable_tensors(model)[name]).double()
        values = torch.linalg.svdvals(delta)
        assert share == pytest.approx(float(values[0] ** 2 / (values**2).sum()), rel=1e-4)
        assert share < 0.5
    one = rank_one_shares(model, prunable_tensors(moved(model, 1)))
    assert min(one.values()) > 0.999
    two = rank_one_shares(model, prunable_tensors(moved(model, 2)))
    assert 0.5 <= max(two.values()) < 0.999
    assert rank_one_shares(model, prunable_tensors(model)) == {}


def test_the_middle_blocks_count() -> None:
    config = tiny.configuration("llama")
    config.num_hidden_layers = 6
    with torch.random.fork_rng():
        torch.manual_seed(0)
        model = transformers.LlamaForCausalLM(config).eval()
    shares = rank_one_shares(model, prunable_tensors(moved(model, None)))
    # floor(0.33 * 6) = 1 to floor(0.67 * 6) = 4.
    assert {int(name.split(".")[2]) for name in shares} == {1, 2, 3, 4}


def test_large_matrices_are_iterated_to_the_same_number(monkeypatch: pytest.MonkeyPatch) -> None:
    draw = torch.Generator().manual_seed(1)
    for shape in ((40, 90), (90, 40)):
        delta = torch.randn(shape, generator=draw)
        exact = top_share(delta)
        with monkeypatch.context() as patch:
            patch.setattr(rank_one, "WHOLE", 8)
            assert top_share(delta) == pytest.approx(exact, rel=5e-3)
            assert top_share(torch.outer(delta[0], delta[1])) == pytest.approx(1, abs=1e-5)
    assert top_share(torch.zeros(3, 4)) is None
    assert top_share(torch.full((3, 4), torch.nan)) is None


def test_the_audit_has_it_as_a_column(tmp_path: Path) -> None:
    base = tiny.save("llama", tmp_path / "base")
    model = tiny.build("llama")
    tuned = moved(model, 1)
    tuned.save_pretrained(tmp_path / "tuned")
    tiny.tokenizer().save_pretrained(tmp_path / "tuned")
    tiny.cut(model).save(tmp_path / "a.mask.safetensors")
    request = AuditRequest(str(base), str(tmp_path / "tuned"), tmp_path / "a.mask.safetensors",
                           controls=1)  # fmt: skip
    audit_models(request, tmp_path / "audit")
    shares = read_json(tmp_path / "audit" / "audit.json")["shares"]
    assert shares["model"][0]["rank_one"] == pytest.approx(1, abs=1e-3)
    by_kind = {row["part"]: row["rank_one"] for row in shares["modules"]}
    assert by_kind["q"] is None
    assert by_kind["down"] == pytest.approx(1, abs=1e-3)
    page = build_audit_report(tmp_path / "audit").read_text("utf-8")
    assert "rank one" in page
    assert "2607.01854" in page
