"""The table of the encoder's memory, on a CPU."""

import jax

from benchmarks.attention_memory import HEAD, measure


def test_a_program_for_this_machine_is_compiled_searched_and_timed():
    row = measure(jax.devices()[0], 28, "none", "xla", rows=1, depth=1)
    of = dict(zip(HEAD, row, strict=True))
    assert of["holds scores"] == "yes"
    assert float(of["temporaries GB"]) > 0 and float(of["ms"]) > 0
