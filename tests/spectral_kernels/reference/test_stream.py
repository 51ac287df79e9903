"""The random stream: known answers, addresses, and the hash that names a tensor's stream."""

import hashlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from spectral_kernels.backends.cpu import chunks
from spectral_kernels.reference import stream

# Random123's known answers for philox4x32-10: counter, key, output.
KNOWN_ANSWERS = [
    ("00000000 00000000 00000000 00000000", "00000000 00000000",
     "6627e8d5 e169c58d bc57ac4c 9b00dbd8"),
    ("ffffffff ffffffff ffffffff ffffffff", "ffffffff ffffffff",
     "408f276d 41c83b0e a20bc7c6 6d5451fd"),
    ("243f6a88 85a308d3 13198a2e 03707344", "a4093822 299f31d0",
     "d16cfe09 94fdcceb 5001e420 24126ea1"),
]  # fmt: skip


def hex_words(text: str) -> list[int]:
    return [int(word, 16) for word in text.split()]


def philox(counter: list[int], key: list[int]) -> list[int]:
    """Philox4x32-10 of one counter in Python integers, written from the paper."""
    for _ in range(10):
        high_0, low_0 = divmod(counter[0] * 0xD2511F53, 1 << 32)
        high_1, low_1 = divmod(counter[2] * 0xCD9E8D57, 1 << 32)
        counter = [high_1 ^ counter[1] ^ key[0], low_1, high_0 ^ counter[3] ^ key[1], low_0]
        key = [(key[0] + 0x9E3779B9) % (1 << 32), (key[1] + 0xBB67AE85) % (1 << 32)]
    return counter


def word(i: int, j: int, seed: int, name: int) -> int:
    """The contract of the stream, for one entry."""
    counter = [j >> 2, i % (1 << 32), i >> 32, name]
    return philox(counter, [seed % (1 << 32), seed >> 32])[j & 3]


@pytest.mark.parametrize(("counter", "key", "answer"), KNOWN_ANSWERS)
def test_known_answers(counter: str, key: str, answer: str) -> None:
    """A wrong multiplier, increment, round count or word order."""
    k0, k1 = hex_words(key)
    words = [np.array([w], np.uint64) for w in hex_words(counter)]
    got = stream.philox4x32(tuple(words), (k0, k1))
    assert [int(w[0]) for w in got] == hex_words(answer)
    assert philox(hex_words(counter), [k0, k1]) == hex_words(answer)


@pytest.mark.parametrize("seed", [0, 1, 2**32 - 1, 2**32, 0x123456789ABCDEF0, 2**64 - 1])
@pytest.mark.parametrize("row_offset", [0, 2**32 - 2, 2**40 + 7, 2**63 - 9])
@pytest.mark.parametrize("column_offset", [0, 1, 2, 3, 4, 1021, 2**34 - 9])
def test_words_are_addressed_by_entry(seed: int, row_offset: int, column_offset: int) -> None:
    """Key or counter words swapped or cut to 32 bits; a quad that starts at the shard's edge."""
    got = stream.words((5, 9), seed, 0x9ABCDEF1, row_offset=row_offset, column_offset=column_offset)
    expected = [
        [word(row_offset + i, column_offset + j, seed, 0x9ABCDEF1) for j in range(9)]
        for i in range(5)
    ]
    np.testing.assert_array_equal(got, np.array(expected, np.uint32))


@settings(max_examples=40)
@given(
    st.integers(1, 9), st.integers(1, 40), st.integers(0, 8), st.integers(0, 39),
    st.integers(0, 2**64 - 1), st.integers(0, 2**32 - 1),
)  # fmt: skip
def test_a_shard_holds_the_words_of_the_whole(
    m: int, n: int, top: int, left: int, seed: int, name: int
) -> None:
    """Draws that depend on where a shard begins, so that a sharded run differs from a whole one."""
    whole = stream.words((9, 40), seed, name)
    top, left = min(top, 9 - 1), min(left, 40 - 1)
    m, n = min(m, 9 - top), min(n, 40 - left)
    shard = stream.words((m, n), seed, name, row_offset=top, column_offset=left)
    np.testing.assert_array_equal(shard, whole[top : top + m, left : left + n])


def test_draws_are_the_upper_24_bits() -> None:
    """Draws from the low bits, or of 23 or 25 bits, which would bias every probability."""
    words = stream.words((8, 1000), 5, 6)
    draws = stream.draws((8, 1000), 5, 6)
    np.testing.assert_array_equal(draws, words >> 8)
    assert 0.999 * stream.UNIT < draws.max() < stream.UNIT


@pytest.mark.parametrize("row", [0, 2**32 - 1, 2**32, 2**40 + 1])
@pytest.mark.parametrize("first_quad", [0, 255, 2**32 - 8])
def test_compiled_words(row: int, first_quad: int) -> None:
    """Compiled Philox that carries garbage above 32 bits from one round to the next."""
    seed, name = 2**64 - 2, 2**32 - 3
    k0, k1 = stream.split_seed(seed)
    got = np.zeros(32, np.uint32)
    chunks.words(row, first_quad, 8, np.uint64(name), np.uint64(k0), np.uint64(k1), got)
    expected = stream.draws((1, 32), seed, name, row_offset=row, column_offset=4 * first_quad)
    np.testing.assert_array_equal(got >> 8, expected[0])


@pytest.mark.parametrize(
    ("name", "digest"),
    [
        # From `printf NAME | b2sum -l 32`: the digest's bytes, in their order.
        ("", "1271cf25"),
        ("fc1.weight", "118aa437"),
        ("encoder.layer.0.attention.self.query.weight", "a98803aa"),
        ("gewicht.\u00fc", "20c01397"),
    ],
)
def test_stream_id_is_stable(name: str, digest: str) -> None:
    """A hash that varies by process or platform (Python's own), or a byte order that does."""
    assert stream.stream_id(name) == int.from_bytes(bytes.fromhex(digest), "little")
    assert stream.stream_id(name) < 2**32


def test_streams_of_layers_differ() -> None:
    """A hash of so few bits that two layers of one network share their draws."""
    names = [f"model.layers.{i}.{part}" for i in range(100) for part in ("q", "k", "v", "o")]
    assert len({stream.stream_id(name) for name in names}) == len(names)
    assert hashlib.blake2b(b"q", digest_size=4).digest() == stream.stream_id("q").to_bytes(
        4, "little"
    )
