"""The script for a GPU, at sizes that show on a CPU that it runs and that its checks can fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

import mapped
from resect.files.reading import read_json


@pytest.fixture(scope="module")
def device() -> Any:
    return mapped.script("device")


def test_every_part_runs(device: Any, tmp_path: Path) -> None:
    page = tmp_path / "page.md"
    page.write_text("<!-- device: begin -->\nas it was\n<!-- device: end -->\n", encoding="utf-8")
    out = tmp_path / "device.json"
    assert device.main(["--small", "--page", str(page), "-o", str(out)]) == 0
    written = read_json(out)
    assert written["failures"] == []
    assert {row["part"] for row in written["rows"]} == {"kernel", "scores", "scoring", "cuts"}
    assert "as it was" in page.read_text(encoding="utf-8")
    place = device.Place(torch.device("cpu"), "a GPU", small=True)
    rows = [device.Finding(**row) for row in written["rows"]]
    filled = device.fill(page.read_text(encoding="utf-8"), device.table(place, rows))
    assert "as it was" not in filled
    assert "| scoring | signed, time over the plain pass |" in filled


def test_without_a_gpu_nothing_is_written(
    device: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert device.main(["--page", str(tmp_path / "no page")]) == 0
    assert capsys.readouterr().out == "no GPU is here: nothing was measured or written\n"
    assert list(tmp_path.iterdir()) == []


def test_a_check_that_fails_is_named_and_the_rest_goes_on(
    device: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    right = device.attribute_many
    calls: list[str] = []

    def wrong_on_the_second(
        model: Any, tokenizer: Any, encoded: list[Any], **options: Any
    ) -> dict[str, Any]:
        calls.append("scored")
        scored: dict[str, Any] = right(model, tokenizer, encoded[-len(calls) :], **options)
        return scored

    monkeypatch.setattr(device, "attribute_many", wrong_on_the_second)
    monkeypatch.setattr(
        device, "PARTS", {name: device.PARTS[name] for name in ("scores", "kernel")}
    )
    out = tmp_path / "device.json"
    assert device.main(["--small", "-o", str(out)]) == 1
    written = read_json(out)
    assert [failure.split(":")[0] for failure in written["failures"]] == ["scores"]
    assert {row["part"] for row in written["rows"]} == {"kernel"}
