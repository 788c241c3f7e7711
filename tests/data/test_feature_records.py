"""Features and texts as the records of a cache."""

import ml_dtypes
import numpy as np
import pytest

from blip2_jax.data.feature_records import (
    CachedRecord,
    num_bytes,
    pack_features,
    pack_record,
    unpack_features,
    unpack_record,
)
from blip2_jax.data.sources.base import BrokenSample, Question, Record
from blip2_jax.parallel.files import FileFormatError


def random_features(seed, outlier=1.0):
    features = np.random.default_rng(seed).standard_normal((5, 64)).astype(np.float32)
    features[1, 7] *= outlier
    features[2] = 0
    return features


def test_bfloat16_is_rounded_once():
    features = random_features(0)
    data = pack_features(features, "bf16")
    assert len(data) == num_bytes("bf16", 5, 64)
    expected = features.astype(ml_dtypes.bfloat16)
    np.testing.assert_array_equal(unpack_features(data, "bf16", 5, 64), expected)
    again = pack_features(expected, "bf16")
    assert again == data


@pytest.mark.parametrize("outlier", [1, 1e-3, 1e4])
def test_int8_errs_by_half_a_step_of_its_token(outlier):
    features = random_features(1, outlier)
    data = pack_features(features, "int8")
    assert len(data) == num_bytes("int8", 5, 64)
    stored = unpack_features(data, "int8", 5, 64)
    assert stored.dtype == ml_dtypes.bfloat16
    step = np.abs(features).max(axis=1, keepdims=True) / 127
    # bfloat16 adds up to a 256th of the value.
    bound = 0.501 * step + np.abs(features) / 255
    assert (np.abs(stored.astype(np.float32) - features) <= bound).all()
    assert not stored[2].astype(np.float32).any()


@pytest.mark.parametrize("dtype", ["bf16", "int8"])
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
def test_values_that_are_not_finite_are_refused(dtype, value):
    features = random_features(2)
    good = bytearray(pack_features(features, dtype))
    kind = ml_dtypes.bfloat16 if dtype == "bf16" else np.float32
    bad = np.array([value], kind).tobytes()
    good[: len(bad)] = bad
    with pytest.raises(ValueError, match="not finite"):
        unpack_features(bytes(good), dtype, 5, 64)
    with pytest.raises(ValueError, match="9 bytes of features, not"):
        unpack_features(b"123456789", dtype, 5, 64)


def test_texts_are_kept():
    question = Question("what is it?", ("a cat", "cat"), 7, "other")
    record = Record("k", 3, ("a cat", "zwei\u2028"), (question,), "id", "all", "near")
    for cached in (
        CachedRecord(record, None, 4),
        CachedRecord(record, ("truncated image", "k", "at byte 3"), 5),
        CachedRecord(None, ("malformed row", "row 3", ""), 6),
    ):
        assert unpack_record(pack_record(cached), "here") == cached
    with pytest.raises(BrokenSample, match="malformed row: row 3"):
        cached.readable()


@pytest.mark.parametrize(
    "data", [b"", b"{", b"[]", b"{}", b'{"features": 0, "record": 3}', b"\xff"]
)
def test_damaged_texts_name_the_record(data):
    with pytest.raises(FileFormatError, match="record 3 is damaged"):
        unpack_record(data, "record 3")
