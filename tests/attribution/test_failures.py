"""What can go wrong during a pass: it goes on without a loss, or stops and says what to do."""

from __future__ import annotations

import json
import logging
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import accelerate
import pytest
import torch

import tiny
from launched import assert_same, base, environment, run
from resect.errors import InputError
from resect.model.prunable import blocks
from resect.records import CausalModel
from shared_work import EXAMPLES, MODELS

Output = torch.Tensor | tuple[torch.Tensor, ...]
Rows = Sequence[torch.Tensor]


def on_gradient(hidden: Any, hook: Callable[[torch.Tensor], torch.Tensor | None]) -> None:
    """Call a hook with the gradient at hidden states; torch gives this method no types."""
    hidden.register_hook(hook)


class Scarce:
    """A module hook by which batches of more than `room` examples run out of memory."""

    def __init__(self, room: int) -> None:
        self.room = room
        self.failed = 0

    def __call__(self, examples: int) -> None:
        if examples > self.room:
            self.failed += 1
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")


@contextmanager
def scarce(model: CausalModel, room: int, where: str) -> Iterator[Scarce]:
    """Let large batches fail on their way through the first block, forwards or backwards."""
    meter = Scarce(room)

    def forwards(_module: torch.nn.Module, _args: object, output: Output) -> None:
        hidden = output[0] if isinstance(output, tuple) else output
        if where == "forward":
            meter(len(hidden))
        else:
            on_gradient(hidden, lambda gradient: meter(len(gradient)))

    hook = blocks(model)[0].register_forward_hook(forwards)
    try:
        yield meter
    finally:
        hook.remove()


@pytest.mark.parametrize("architecture", [*MODELS, "gpt2"])
@pytest.mark.parametrize("room", [1, 3])
@pytest.mark.parametrize("where", ["forward", "backward"])
def test_out_of_memory_backs_off_and_finishes_with_equal_sums(
    where: str, room: int, architecture: str, caplog: pytest.LogCaptureFixture
) -> None:
    # In the backward pass the later block has added its part to the sums when memory runs out.
    model, encoded = tiny.build(architecture), tiny.examples(EXAMPLES)
    counts: list[int] = []
    with scarce(model, room, where) as meter, caplog.at_level(logging.INFO):
        scores = run(model, encoded)
        model.register_forward_pre_hook(
            lambda _m, _a, kwargs: counts.append(len(kwargs["input_ids"])), with_kwargs=True
        )
        run(model, encoded, ("signed",), batch_size=EXAMPLES)
    assert meter.failed > 0
    assert_same(scores, base(architecture))
    # What ran out of memory is no reason to give up on batches.
    assert "one example a pass" not in caplog.text
    # 7 examples at once, then 3 and 4 of them and so on; each is seen in a batch that fits.
    assert counts[0] == EXAMPLES
    assert sum(count for count in counts if count <= room) == EXAMPLES


def test_later_batches_are_no_larger_than_what_fitted() -> None:
    model, counts = tiny.build("llama"), []
    model.register_forward_pre_hook(
        lambda _m, _a, kwargs: counts.append(len(kwargs["input_ids"])), with_kwargs=True
    )
    with scarce(model, 2, "backward"):
        run(model, tiny.examples(12), ("signed",), batch_size=4)
    # Without learning from the first failure each batch of four would fail once.
    assert counts == [4, 2, 2, 2, 2, 2, 2]


@pytest.mark.parametrize("bad", [0, 1, 2])
def test_running_out_within_a_product_adds_nothing_twice(
    bad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    from resect.attribution import sums

    # Tiles of one row, so that the gradient of one example takes many steps.
    monkeypatch.setattr(sums, "CPU_TILE", 1)
    model, encoded = tiny.build("llama"), tiny.examples(EXAMPLES)
    add, calls = sums.Sums._add, [0]

    def failing(self: sums.Sums, name: str, rows: slice, gradient: torch.Tensor) -> None:
        calls[0] += 1
        if calls[0] == 7 + 100 * bad:
            raise torch.OutOfMemoryError("out of memory")
        add(self, name, rows, gradient)

    monkeypatch.setattr(sums.Sums, "_add", failing)
    assert_same(run(model, encoded, batch_size=4), base("llama"))
    assert calls[0] > 207


@pytest.mark.parametrize("bad", [0, 2, 3])
def test_running_out_before_the_kernel_adds_nothing_twice(
    bad: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The first batch goes by tiles and fails in example `bad`; its second half by the kernel."""
    from resect.attribution import kernel, sums

    def slow(left_rows: Rows, right: Rows, **totals: torch.Tensor | None) -> None:
        step("kernel")
        for left, right_row in zip(left_rows, right, strict=True):
            gradient = left.float().T @ right_row.float()
            if (sizes := totals["absolute"]) is not None:
                sizes.add_(gradient.abs())
            if (squares := totals["square"]) is not None:
                squares.add_(gradient.square())

    def step(where: str) -> None:
        calls[where] = calls.get(where, 0) + 1
        if calls[where] == {"tiles": rows * bad + 3, "kernel": 2 + 3 * bad}[where]:
            raise torch.OutOfMemoryError("out of memory")

    def tiles(self: sums.Sums, name: str, span: slice, gradient: torch.Tensor) -> None:
        step("tiles")
        add(self, name, span, gradient)

    model, calls = tiny.build("llama"), dict[str, int]()
    rows = model.model.layers[1].mlp.down_proj.weight.shape[0]  # which comes first going back
    add = sums.Sums._add
    monkeypatch.setattr(sums, "CPU_TILE", 1)
    monkeypatch.setattr(sums.Sums, "_add", tiles)
    monkeypatch.setattr(kernel, "usable", lambda _tensor: True)
    monkeypatch.setattr(kernel, "add_sums", slow)
    assert_same(run(model, tiny.examples(EXAMPLES), batch_size=4), base("llama"))
    assert calls["tiles"] > 4 * rows
    assert calls["kernel"] > 11


def test_one_example_that_does_not_fit_is_named() -> None:
    model = tiny.build("llama")
    with scarce(model, 0, "forward"), pytest.raises(InputError) as caught:
        run(model, tiny.examples(2))
    assert "does not fit into memory" in str(caught.value)
    assert "example 'e" in str(caught.value)
    assert "Tried to allocate 2.00 GiB" in str(caught.value)
    assert "next step: shorten it" in str(caught.value)


@pytest.mark.parametrize("architecture", MODELS)
def test_a_gradient_that_is_not_a_number_names_the_example(architecture: str) -> None:
    model = tiny.build(architecture)
    encoded = [example for example in tiny.examples(5) if 7 not in example.input_ids]
    odd = replace(encoded[0], id="odd", input_ids=(5, 7, *encoded[0].input_ids))
    rows: list[bool] = []

    def spoil(_module: torch.nn.Module, _args: object, output: Output) -> None:
        def bad(gradient: torch.Tensor) -> torch.Tensor:
            # As 0·∞ in the derivative of a root at 0: the loss is finite, its gradient is not.
            return gradient.where(~torch.tensor(rows)[:, None, None], float("nan"))

        hidden = output[0] if isinstance(output, tuple) else output
        on_gradient(hidden, bad)

    def see(_module: torch.nn.Module, _args: object, kwargs: dict[str, torch.Tensor]) -> None:
        rows[:] = (kwargs["input_ids"] == 7).any(dim=1).tolist()

    model.register_forward_pre_hook(see, with_kwargs=True)
    blocks(model)[1].register_forward_hook(spoil)
    with pytest.raises(InputError) as caught:
        run(model, [*encoded, odd])
    assert "the gradient of example 'odd' is not finite" in str(caught.value)
    assert "next step:" in str(caught.value)


def test_an_example_without_a_scored_token_is_named() -> None:
    encoded = tiny.examples(3)
    for first_scored in (len(encoded[1].input_ids), 99, 0):
        bad = [encoded[0], replace(encoded[1], id="none", first_scored=first_scored), encoded[2]]
        with pytest.raises(InputError) as caught:
            run(tiny.build("llama"), bad)
        assert "example 'none' has no token to score" in str(caught.value)
        assert "next step: remove it, or lower --skip" in str(caught.value)


@pytest.mark.parametrize("dtype", [torch.int8, torch.uint8, torch.float8_e4m3fn])
def test_quantised_weights_are_refused_with_the_way_out(dtype: torch.dtype) -> None:
    model = tiny.build("llama")
    layer = model.model.layers[1].mlp.down_proj
    # As bitsandbytes and FP8 checkpoints have them: a parameter of another dtype in nn.Linear.
    layer.weight = torch.nn.Parameter(layer.weight.detach().to(dtype), requires_grad=False)
    with pytest.raises(InputError) as caught:
        run(model, tiny.examples(2))
    assert "the model is quantised" in str(caught.value)
    assert "model.layers.1.mlp.down_proj.weight in" in str(caught.value)
    assert "next step: load the original checkpoint in bfloat16" in str(caught.value)


@pytest.mark.parametrize("layers", [1, 2])
def test_packed_weights_are_refused_too(layers: int) -> None:
    class Packed(torch.nn.Module):
        """As GPTQ and AWQ have them: no parameter at all, but a buffer of packed integers."""

        def __init__(self, linear: torch.nn.Linear) -> None:
            super().__init__()
            self.inner = [linear]
            packed = torch.zeros(linear.in_features // 8, linear.out_features, dtype=torch.int32)
            self.register_buffer("qweight", packed)

        def forward(self, x: torch.Tensor) -> torch.Tensor:
            result: torch.Tensor = self.inner[0](x)
            return result

    model = tiny.build("llama")
    model.config.quantization_config = {"quant_method": "gptq"}
    for layer in list(model.model.layers)[:layers]:
        for owner, name in [(layer.mlp, n) for n in ("gate_proj", "up_proj", "down_proj")]:
            setattr(owner, name, Packed(getattr(owner, name)))
    # Without a refusal the cut would silently miss these layers.
    with pytest.raises(InputError, match="the model is quantised"):
        run(model, tiny.examples(2))


@pytest.mark.parametrize("offloaded", ["all", "one layer"])
def test_offloaded_weights_are_refused_with_the_way_out(offloaded: str) -> None:
    model = tiny.build("llama")
    target = model if offloaded == "all" else model.model.layers[1]
    accelerate.cpu_offload(target, execution_device="cpu")
    with torch.no_grad():  # it runs, but has no gradients
        model(input_ids=torch.tensor([[5, 6, 7]]))
    with pytest.raises(InputError) as caught:
        run(model, tiny.examples(2))
    assert "offloaded weights have no gradient" in str(caught.value)
    assert "next step: load it without offloading" in str(caught.value)


@pytest.mark.parametrize("architecture", ["mixtral", "qwen3_moe"])
def test_inputs_of_experts_are_refused_with_the_way_out(architecture: str) -> None:
    """Which token an expert saw is not known; before, this was a traceback about sizes."""
    with pytest.raises(InputError) as caught:
        run(tiny.build(architecture), tiny.examples(3), ("signed",), method="wanda")
    assert "the inputs of some weights cannot be told apart by example" in str(caught.value)
    assert "mlp.experts." in str(caught.value)
    assert "next step: choose another method" in str(caught.value)


STOPPED = """
import signal, sys, time, torch
from resect.cli import main
# Tests that are started in the background inherit that it is ignored.
signal.signal(signal.SIGINT, signal.default_int_handler)
pass_on = torch.nn.Embedding.forward
def slow(self, ids):
    print("scoring", flush=True)
    time.sleep(60)
    return pass_on(self, ids)
torch.nn.Embedding.forward = slow
sys.argv = ["resect", *sys.argv[1:]]
main()
"""


def test_ctrl_c_leaves_no_artefact_and_says_what_to_do(tmp_path: Path) -> None:
    tiny.save("llama", tmp_path / "m")
    data = tmp_path / "d.jsonl"
    data.write_text("".join(json.dumps(row) + "\n" for row in tiny.rows(4, "a")))
    output = tmp_path / "out" / "a.scores.safetensors"
    words = ["score", str(tmp_path / "m"), "--data", str(data), "-o", str(output)]
    with subprocess.Popen(
        [sys.executable, "-c", STOPPED, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment(),
    ) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "scoring\n"
        os.kill(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "stopped: nothing is half-written; run the same command again" in errors
    assert "Traceback" not in errors
    assert not output.parent.exists() or list(output.parent.iterdir()) == []
