"""The tolerances of comparisons with the original, and a log of the errors.

With BLIP2_JAX_PARITY_LOG=FILE every comparison appends a line of JSON, from which
`python -m benchmarks.parity` makes the table of docs/parity.md.
"""

import json
import os
import pathlib

import numpy as np


def assert_values(actual, expected, what: str = "") -> None:
    """Check |error| <= 1e-5 + 1e-4 |expected|."""
    bound = 1e-5 + 1e-4 * np.abs(np.asarray(expected, np.float64))
    record("values", what, actual, expected, bound)
    np.testing.assert_allclose(actual, expected, rtol=1e-4, atol=1e-5, err_msg=what)


def assert_gradients(actual, expected, what: str = "") -> None:
    """Check |error| <= 1e-4 max|expected| + 2e-6."""
    bound = 1e-4 * np.abs(expected).max() + 2e-6
    record("gradients", what, actual, expected, bound)
    np.testing.assert_allclose(actual, expected, rtol=0, atol=bound, err_msg=what)


def assert_ids(actual, expected, what: str = "") -> None:
    """Check that token ids are equal."""
    record("ids", what, actual, expected, 1)
    np.testing.assert_array_equal(actual, expected, err_msg=what)


def record(kind: str, what: str, actual, expected, bound) -> None:
    """Log the largest error of a comparison, and its share of the tolerance."""
    if not (path := os.environ.get("BLIP2_JAX_PARITY_LOG")):
        return
    actual, expected = (np.asarray(a, np.float64) for a in (actual, expected))
    if actual.shape != expected.shape or not actual.size:
        return
    error = np.abs(actual - expected)
    line = {
        "test": os.environ["PYTEST_CURRENT_TEST"].split(" ")[0],
        "kind": kind,
        "what": what,
        "error": float(error.max()),
        "share": float((error / bound).max()),
        "count": int(actual.size),
    }
    with pathlib.Path(path).open("a") as file:
        file.write(json.dumps(line) + "\n")
