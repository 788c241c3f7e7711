"""Shape annotations use only the dimension letters of the package's legend."""

import pathlib
import re

import blip2_jax

PACKAGE = pathlib.Path(blip2_jax.__file__).parent
ANNOTATION = re.compile(
    r"\b(?:Bool|Float\d*|Int\d*|UInt\d*|Key|Num|Real|Shaped)"
    r'\[[\w.| ]+,\s*"([^"]*)"\s*\]'
)


def letters_of_legend():
    legend = str(blip2_jax.__doc__).split("\n\n")[2]
    return set(re.findall(r"(?:^|\s)([A-Z])\s", legend))


def test_every_letter_is_in_the_legend():
    legend = letters_of_legend()
    assert {"B", "D", "L"} <= legend and len(legend) == 17
    unknown = set()
    for path in sorted(PACKAGE.rglob("*.py")):
        for shape in ANNOTATION.findall(path.read_text()):
            names = set(re.findall(r"[A-Za-z_]\w*", shape))
            strange = {n for n in names if n not in legend and not n.islower()}
            unknown |= {(str(path.relative_to(PACKAGE)), name) for name in strange}
            # One lower-case letter says no more than a letter outside the legend.
            unknown |= {(str(path), n) for n in names if n.islower() and len(n) == 1}
    assert not unknown
