"""Zeros in quantised blocks: exact, alone, and refused where no code decodes to one."""

from __future__ import annotations

from collections.abc import Callable

import gguf
import numpy as np
import pytest
from gguf import GGMLQuantizationType as Type

import tiny_gguf
from resect.export.blocks import values_at, zeroed
from resect.model.gguf import Bytes, GgufTensor, Values, dequantised


def tensor_of(type_name: str, rows: int = 6, columns: int = 512, seed: int = 0) -> GgufTensor:
    draw = np.random.default_rng(seed)
    weight = draw.normal(0, 0.1, (rows, columns)).astype(np.float32)
    data = tiny_gguf.blocks(weight, type_name, seed)
    block = gguf.GGML_QUANT_SIZES[Type[type_name]][0]
    raw = np.ascontiguousarray(data).reshape(-1).view(np.uint8)
    return GgufTensor("blk.0.x.weight", type_name, weight.shape, raw, block)


def values_of(tensor: GgufTensor) -> Values:
    return dequantised(tensor.data, tensor.type, (tensor.size,))


def half(block: Bytes, start: int) -> np.float32:
    return np.float32(block[start : start + 2].copy().view(np.float16)[0])


# One weight of one block with a given code, by the formats of ggml and without the package.
def q4_0(block: Bytes, weight: int, code: int) -> np.float32:
    return half(block, 0) * np.float32(code - 8)


def q4_1(block: Bytes, weight: int, code: int) -> np.float32:
    return half(block, 0) * np.float32(code) + half(block, 2)


def q5_0(block: Bytes, weight: int, code: int) -> np.float32:
    return half(block, 0) * np.float32(code - 16)


def q8_0(block: Bytes, weight: int, code: int) -> np.float32:
    return half(block, 0) * np.float32(code - 128)


def q6_k(block: Bytes, weight: int, code: int) -> np.float32:
    scale = np.float32(block[192 + weight // 16 : 193 + weight // 16].view(np.int8)[0])
    return (half(block, 208) * scale) * np.float32(code - 32)


def q4_k(block: Bytes, weight: int, code: int) -> np.float32:
    part, scales = weight // 32, block[4:16].astype(int)
    if part < 4:
        scale, minimum = scales[part] & 63, scales[part + 4] & 63
    else:
        scale = scales[part + 4] & 15 | scales[part - 4] >> 6 << 4
        minimum = scales[part + 4] >> 4 | scales[part] >> 6 << 4
    product = half(block, 0) * np.float32(scale) * np.float32(code)
    return product - half(block, 2) * np.float32(minimum)


FORMATS: dict[str, tuple[int, Callable[[Bytes, int, int], np.float32]]] = {
    "Q4_0": (16, q4_0), "Q4_1": (16, q4_1), "Q5_0": (32, q5_0), "Q8_0": (256, q8_0),
    "Q6_K": (64, q6_k), "Q4_K": (16, q4_k),
}  # fmt: skip


def with_zeros(tensor: GgufTensor) -> GgufTensor:
    """Let the minimum of every second block be a multiple of its scale, if it has a minimum."""
    data = np.array(tensor.blocks)
    if tensor.type == "Q4_1":
        data[::2, 2:4] = (np.array([-3], dtype=np.float16) * data[::2, :2].view(np.float16)).view(
            np.uint8
        )
    if tensor.type == "Q4_K":
        # dmin of 2 d, and for the first part a scale of 1 under a minimum of 3: code 6.
        data[::2, :4] = np.array([0.25, 0.5], dtype=np.float16).view(np.uint8)
        data[::2, 4], data[::2, 8] = 1, 3
    flat = np.ascontiguousarray(data).reshape(-1)
    return GgufTensor(tensor.name, tensor.type, tensor.shape, flat, tensor.block)


@pytest.mark.parametrize("type_name", FORMATS)
def test_a_weight_is_refused_where_no_code_of_the_format_is_zero(type_name: str) -> None:
    tensor = with_zeros(tensor_of(type_name))
    codes, value = FORMATS[type_name]
    index = np.random.default_rng(1).choice(tensor.size, 300, replace=False)
    done = zeroed(tensor, index)
    blocks = tensor.blocks
    with_a_zero = np.array(
        [
            any(
                value(blocks[at // tensor.block], at % tensor.block, code) == 0
                for code in range(codes)
            )
            for at in index.tolist()
        ]
    )
    assert np.array_equal(~done.refused, with_a_zero)
    if type_name in ("Q4_1", "Q4_K"):
        assert 0 < done.refused.sum() < len(index)
    else:
        assert not done.refused.any()


@pytest.mark.parametrize(
    "type_name",
    ["F32", "F16", "BF16", "Q4_0", "Q5_0", "Q8_0", "Q6_K", "Q3_K", "Q4_1", "Q5_1", "Q2_K", "Q4_K",
     "Q5_K", "TQ2_0", "MXFP4", "IQ4_NL"],
)  # fmt: skip
@pytest.mark.parametrize("share", [0.001, 0.3, 1.0])
def test_places_are_zero_and_nothing_else_changes(type_name: str, share: float) -> None:
    tensor = with_zeros(tensor_of(type_name))
    draw = np.random.default_rng(2)
    index = draw.permutation(tensor.size)[: max(1, round(share * tensor.size))]
    done = zeroed(tensor, index)
    expected = values_of(tensor)
    expected[index[~done.refused]] = 0
    data = np.array(tensor.blocks)
    data[done.rows] = done.blocks
    values = dequantised(data, type_name, (tensor.size,))
    assert np.array_equal(np.where(values == 0, 0, values).view(np.uint32),
                          np.where(expected == 0, 0, expected).view(np.uint32))  # fmt: skip
    without = type_name in ("Q4_1", "Q5_1", "Q2_K", "Q4_K", "Q5_K", "IQ4_NL")
    assert done.refused.any() or not without or share == 0.001
    assert not done.refused.any() or without


def test_a_weight_that_is_zero_already_keeps_its_code() -> None:
    tensor = tensor_of("Q4_0")
    data = np.array(tensor.blocks)
    data[:, :2] = 0  # the scale: every code is 0
    tensor = GgufTensor(tensor.name, "Q4_0", tensor.shape, data.reshape(-1), tensor.block)
    done = zeroed(tensor, np.arange(0, tensor.size, 7))
    assert not done.refused.any()
    assert np.array_equal(done.blocks, data[done.rows])


def test_a_scale_that_is_no_number_is_refused_alone() -> None:
    tensor = tensor_of("Q8_0")
    data = np.array(tensor.blocks)
    data[3, :2] = np.array([np.nan], dtype=np.float16).view(np.uint8)
    tensor = GgufTensor(tensor.name, "Q8_0", tensor.shape, data.reshape(-1), tensor.block)
    done = zeroed(tensor, np.array([5, 3 * 32 + 1, 4 * 32]))
    assert done.refused.tolist() == [False, True, False]


@pytest.mark.parametrize("type_name", ["F32", "BF16", "Q4_0", "Q6_K"])
def test_values_at_places_are_those_of_the_whole(type_name: str) -> None:
    tensor = tensor_of(type_name)
    index = np.random.default_rng(3).permutation(tensor.size)[:100]
    assert np.array_equal(values_at(tensor, index), values_of(tensor)[index])
