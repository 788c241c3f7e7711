"""A profile of some training steps (`config.profile`), for XProf.

    --config.profile=10:13    # steps 10, 11, 12 and 13

The trace is written to DIR/profile in the layout that XProf and TensorBoard read. Each
process writes its own part.
"""

from __future__ import annotations

import contextlib
import pathlib
import re

import jax

FOLDER = "profile"  # in the directory of a run


def parse_profile(text: str, last: int) -> range:
    """Parse "FIRST:LAST", both included; "" gives no steps.

    Args:
      text: `config.profile`.
      last: last step of the run.

    Raises:
      ValueError: the text has another form, or names steps that the run does not have.
    """
    if not text:
        return range(0)
    match = re.fullmatch(r"(\d+):(\d+)", text)
    steps = range(int(match[1]), int(match[2]) + 1) if match else range(0)
    if not steps or steps[0] < 1 or steps[-1] > last:
        raise ValueError(
            f"config.profile is {text!r}; it must be FIRST:LAST, e.g. 10:13, of the "
            f'steps 1 to {last} of the run, or "" for no profile'
        )
    return steps


class ProfiledSteps:
    """The profile of a run: begins before its first step and ends after its last one.

    Args:
      steps: from `parse_profile`.
      directory: directory of the run.
    """

    def __init__(self, steps: range, directory: pathlib.Path) -> None:
        self.steps = steps
        self.folder = directory / FOLDER
        self._is_active = False

    def begin(self, step: int) -> contextlib.AbstractContextManager[None]:
        """Begin the profile if it is due; return the context in which to run the step.

        A run that continues within the steps profiles the rest of them.
        """
        if step not in self.steps:
            return contextlib.nullcontext()
        if not self._is_active:
            jax.profiler.start_trace(str(self.folder))
            self._is_active = True
        return jax.profiler.StepTraceAnnotation("train", step_num=step)

    def is_last(self, step: int) -> bool:
        """Return True if the profile ends with this step."""
        return self._is_active and step == self.steps[-1]

    def end(self) -> bool:
        """Write the profile; return False if none was begun."""
        if not self._is_active:
            return False
        self._is_active = False
        jax.profiler.stop_trace()
        return True
