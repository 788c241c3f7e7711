"""The pages of the documentation, and the code blocks in them.

A block may need what a test does not have. A comment on the line before it says so:

    <!-- needs: weights -->

and `<!-- page needs: time -->` covers all blocks of a page. Text after "needs:" is for
the reader of the source. Blocks without such a comment are executed by
`tests/docs/test_examples.py`; the others are parsed.
"""

from __future__ import annotations

import dataclasses
import pathlib
import re
import shlex

ROOT = pathlib.Path(__file__).parents[2]
PAGES = sorted(
    [
        *(ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")),
        *(ROOT / "docs").rglob("*.md"),
    ]
)
NEEDS = re.compile(r"<!-- (page )?needs: (.+?) -->")
FENCE = re.compile(r"```(\w*)$")
VARIABLE = re.compile(r"[A-Z_0-9]+=")
PROGRAMS = ("blip2-jax", "python", "make", "pip", "sbatch", "pytest", "launch/")


@dataclasses.dataclass(frozen=True)
class Block:
    """A code block.

    Attributes:
      page: name of the page, relative to the repository.
      line: number of its first line.
      language: of the fence; "bash" or "text" for an indented block.
      text: the code.
      needs: what it needs; "" if a test executes it.
    """

    page: str
    line: int
    language: str
    text: str
    needs: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def read_blocks(page: pathlib.Path) -> list[Block]:
    """Return the code blocks of a page."""
    lines = page.read_text().splitlines()
    name = str(page.relative_to(ROOT))
    page_needs, needs, blocks = "", "", []
    number = 0
    while number < len(lines):
        line = lines[number]
        number += 1
        if marker := NEEDS.fullmatch(line):
            needs = marker[2]
            if marker[1]:
                page_needs, needs = needs, ""
            continue
        start = number
        if fence := FENCE.fullmatch(line):
            while lines[number] != "```":
                number += 1
            code, language = lines[start:number], fence[1]
            number += 1
        elif line.startswith("    ") and line.strip() and not in_list(lines, number):
            while number < len(lines) and lines[number].startswith("    "):
                number += 1
            code = [each[4:] for each in lines[start - 1 : number]]
            language = "bash" if is_command(code[0]) else "text"
        else:
            needs = needs if not line.strip() else ""
            continue
        text = "\n".join(code)
        blocks.append(Block(name, start, language, text, needs or page_needs))
        needs = ""
    return blocks


def in_list(lines: list[str], number: int) -> bool:
    """Test if an indented line continues an item of a list."""
    for line in reversed(lines[: number - 1]):
        if line.strip() and not line.startswith(" "):
            return bool(re.match(r"[-*+] |\d+\. ", line))
        if re.match(r" +([-*+]|\d+\.) ", line):
            return True
    return False


def is_command(line: str) -> bool:
    """Test if a line starts with a program that the documentation uses."""
    words = [word for word in line.split() if not VARIABLE.match(word)]
    return bool(words) and words[0].startswith(PROGRAMS)


def read_commands(block: Block) -> list[list[str]]:
    """Return the commands of a bash block, each as a list of words.

    Continued lines and those inside quotes are joined; comments and leading
    `NAME=value` are dropped.
    """
    commands = []
    for line in _join_lines(block.text):
        words = shlex.split(line, comments=True)
        while words and VARIABLE.match(words[0]):
            words.pop(0)
        if words:
            commands.append(words)
    return commands


def _join_lines(text: str) -> list[str]:
    """Return the lines of a block, joined where a quotation goes on."""
    lines: list[str] = []
    for line in text.replace("\\\n", " ").splitlines():
        if lines and lines[-1].count("'") % 2:
            lines[-1] += f" {line}"
        else:
            lines.append(line)
    return lines


def all_blocks(language: str) -> list[Block]:
    """Return all blocks of a language."""
    return [
        block
        for page in PAGES
        for block in read_blocks(page)
        if block.language == language
    ]


def prose(page: pathlib.Path) -> str:
    """Return a page without its fenced code blocks."""
    return re.sub(r"(?ms)^```\w*$.*?^```$", "", page.read_text())
