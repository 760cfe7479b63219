"""Blocks written out: one of each type of GGUF, of the same simple sequence of codes, scales and minima."""

from __future__ import annotations

import gguf
import numpy as np
import pytest

from r1quant.core.blocktypes import BLOCK_TYPES
from r1quant.formats.gguf import superblocks
from tests.formats.gguf.blocklinears import in_turn, linear_of, same

BLOCKS = {
    "Q4_0": "982bb80d52a70c52a7fc41a6fc4196eb4096",
    "Q4_1": "982b982bb80d52a70c52a7fc41a6fc4196eb4096",
    "Q5_0": "982be3380ec7b80d52a70c52a7fc41a6fc4196eb4096",
    "Q5_1": "982b982be3380ec7b80d52a70c52a7fc41a6fc4196eb4096",
    "Q8_0": "982b183d6287acd2f71c41668cb1d6fb20466b90b5da00254a6f94badf04294e7499",
    "Q2_K": (
        "88dd2277cc2277cc1166cc1166bb0066c82d728b1c6287d821b6c82d728b1c6287d821b6c82d728b1c6287d821b6c82d21b6c82d728b"
        "1c6287d821b6c82d728b1c6287d821b6c82d728b1c6287d821b6982b982b"
    ),
    "Q3_K": (
        "c6319ce7318ce7398c6339ce6318ce7318c6739cc6319ce7318ce7398c6339cec82d728b1c6287d821b6c82d728b1c6287d821b6c82d"
        "728b1c6287d821b6c82d21b6c82d728b1c6287d821b6c82d728b1c6287d821b6c82d728b1c6287d821b6186dc2176cb2076c49e78e34"
        "982b"
    ),
    "Q4_K": (
        "982b982b987de247987de247cc2277cce83d82e73c82d72c81d62c71c62b70c61b60c51a60b50a6fb40a5fa4095ea4f9b40a5fa4095e"
        "a4f94ea3f84e93e84d92e83d82e73c82d72c81d62c71c62b70c681d62c71c62b70c61b60c51a60b50a6fb40a5fa4095ea4f94ea3f84e"
        "93e84d924ea3f84e93e84d92e83d82e73c82d72c81d62c71c62b70c61b60c51a60b50a6f"
    ),
    "Q5_K": (
        "982b982b987de247987de247cc2277cc7339188cc6e77331188ccee77331189ccee76331189ccec66331399ccec66373e83d82e73c82"
        "d72c81d62c71c62b70c61b60c51a60b50a6fb40a5fa4095ea4f9b40a5fa4095ea4f94ea3f84e93e84d92e83d82e73c82d72c81d62c71"
        "c62b70c681d62c71c62b70c61b60c51a60b50a6fb40a5fa4095ea4f94ea3f84e93e84d924ea3f84e93e84d92e83d82e73c82d72c81d6"
        "2c71c62b70c61b60c51a60b50a6f"
    ),
    "Q6_K": (
        "48adf2479ce2479ce1368ce1368bd0268bd0257ac0257acf146acf1469be0469be0358ae0358adf248adf2479ce2479ce1368ce1368b"
        "d0268bd0257ac0257acfe1368ce1368bd0268bd0257ac0257acf146acf1469be0469be0358ae0358adf248adf2479ce2479ce1368ce1"
        "368bd0268bd0257ac0257acf146acf1469be04692dcb62d8b61d8721c872dcb72d8b62d8761d8721c872dcb62d8b61d8761c872db72d"
        "8b62d8761d8721c872dcb72d8b61d8761c8721cb72d8b62d8761d8721cb7183d6287acd2f71c41668cb1d6fb2046982b"
    ),
    "IQ4_NL": "982bb80d52a70c52a7fc41a6fc4196eb4096",
    "IQ4_XS": (
        "982b2d76d8722cc7b80d52a70c52a7fc41a6fc4196eb40961e63c81e63b80d62b80d52a70c52a7fc84da2f74c92e74c91e63c81e63b8"
        "0d62eb3085ea3085da2f84da2f74c92e74c941a6fc4196eb4096eb3085ea3085da2fb80d52a70c52a7fc41a6fc4196eb40961e63c81e"
        "63b80d62b80d52a70c52a7fc84da2f74c92e74c91e63c81e63b80d62"
    ),
    "IQ3_S": (
        "982b98bde2072c52779cc1e60c31567ba0c6eb10355a80a5caef143a5f84a9cef4193e6388aed3f81d42688db2d7fc22476c91b6dc01"
        "264b7096bbe0052a50759abf07fc017fc01ff8034a29a594524a29a594524a29a594524a29a594524a29a594524a29a594524a29d872"
        "2cc7"
    ),
    "IQ3_XXS": (
        "982b98bde2072c52779cc1e60c31567ba0c6eb10355a80a5caef143a5f84a9cef4193e6388aed3f81d42688db2d7fc22476c91b6dc01"
        "264b7096bbe0052a50759abfca5489825265aad414a93225258a5479a91245caca5489225265aa7414a932c5"
    ),
    "IQ2_S": (
        "982b98bde2072c52779cc1e60c31567ba0c6eb10355a80a5caef143a5f84a9cef4194a29a594524a29a594524a29a594524a29a59452"
        "4a29a594524a29a594524a293f005055a9aaff3fd8722cc7611cb660"
    ),
    "IQ2_XS": (
        "982b9895bd53e24b07282ca4529477529c4ac128e6a40c953153564b7b29a0a5c695eb53104a35285aa48094a552ca4aef2814a53a95"
        "5f53844ba929cea5f4951952d8722cc7611cb660"
    ),
    "IQ2_XXS": (
        "982b98bde207ca5489822c52779c5265aad4c1e60c3114a93225567ba0c6258a5479eb10355aa91245ca80a5caefca548922143a5f84"
        "5265aa74a9cef41914a932c5"
    ),
    "IQ1_M": (
        "98bde2072c52779cc1e60c31567ba0c6eb10355a80a5caef143a5f84a9cef4193b4bccc4c45d5ddde5e66e6efff7f70fa88ed49931b3"
        "1e2c"
    ),
    "IQ1_S": "982b98bde2072c52779cc1e60c31567ba0c6eb10355a80a5caef143a5f84a9cef419db88245964ab6d7bb5cdb6adff7fffc1",
}  # fmt: skip


def test_there_is_one_of_each_type() -> None:
    assert list(BLOCKS) == list(BLOCK_TYPES)


@pytest.mark.parametrize("type", BLOCKS)
def test_blocks_are_these_bytes(type: str) -> None:
    q = linear_of(type, 1, 1, in_turn)
    raw = np.frombuffer(bytes.fromhex(BLOCKS[type]), np.uint8)[None]
    assert superblocks.pack(q).tobytes().hex() == BLOCKS[type]
    assert same(superblocks.unpack(raw, type), q)
    theirs = gguf.quants.dequantize(raw, gguf.GGMLQuantizationType[type])
    assert np.array_equal(theirs, q.dequantize())


def test_two_blocks_by_hand() -> None:
    """Q4_K and Q6_K, column by column from the description of their layout."""
    raw = np.zeros((1, 144), np.uint8)
    raw[0, :4] = 0x00, 0x3C, 0x00, 0x38  # d = 1, dmin = 0.5
    raw[0, 4], raw[0, 8] = 3, 2  # the scale and the minimum of group 0
    raw[0, 4 + 8] = 0x7 | 0x5 << 4  # of group 4 the low halves,
    raw[0, 4] |= 1 << 6  # bit 4 of its scale
    raw[0, 8] |= 2 << 6  # and bit 5 of its minimum
    raw[0, 16] = 0x9 | 0xB << 4  # columns 0 and 32
    raw[0, 16 + 64] = 0x4 | 0xD << 4  # columns 128 and 160
    q = superblocks.unpack(raw, "Q4_K")
    assert q.scales is not None and q.minima is not None
    assert q.scales[0].tolist() == [3, 0, 0, 0, 7 + 16, 0, 0, 0]
    assert q.minima[0].tolist() == [2, 0, 0, 0, 5 + 32, 0, 0, 0]
    assert [q.codes[0, column] for column in (0, 32, 128, 160)] == [9, 11, 4, 13]
    weight = q.dequantize()[0]
    assert weight[0] == 3 * 9 - 0.5 * 2 and weight[128] == 23 * 4 - 0.5 * 37 and weight[160] == 0

    raw = np.zeros((1, 210), np.uint8)
    raw[0, 208:] = 0x00, 0x40  # d = 2
    raw[0, 192 + 9] = 0xFD  # group 9, columns 144 to 159: -3
    raw[0, 64 + 17] = 0x6  # low half of column 128 + 17
    raw[0, 128 + 32 + 17] = 0x3  # its high bits
    q = superblocks.unpack(raw, "Q6_K")
    assert q.scales is not None
    assert q.scales[0, 9] == -3
    assert q.codes[0, 145] == 0x36
    assert q.dequantize()[0, 145] == 2 * -3 * (0x36 - 32)
