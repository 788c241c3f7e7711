"""Silence the logs and warnings of libraries; the commands print what users need."""

from __future__ import annotations

import os
import warnings


def quiet_libraries() -> None:
    """Let libraries report errors only. What the environment sets has priority."""
    # Read when transformers and the C++ parts of TensorFlow and XLA are imported.
    os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")
    os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "2")
    from absl import logging

    logging.set_verbosity(logging.ERROR)  # orbax logs every file
    if "PYTHONWARNINGS" not in os.environ:
        warnings.simplefilter("ignore")
