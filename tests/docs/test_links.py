"""Links, anchors and paths of the documentation lead somewhere."""

import importlib
import re

import pytest

from tests.support.documentation import PAGES, ROOT, prose

LINK = re.compile(r"\]\(([^)\s]+)\)")
PATH = re.compile(
    r"(?<![\w/.])"
    r"((?:blip2_jax|configs|tests|launch|benchmarks|docs)/[\w/.-]*[\w/]|\.[a-z-]+\.yaml)"
)
MODULE = re.compile(r"\bblip2_jax(?:\.\w+)+")
pages = pytest.mark.parametrize(
    "page", PAGES, ids=lambda page: str(page.relative_to(ROOT))
)


def anchors(text: str) -> set[str]:
    """Return the anchors that headings of a page get."""
    headings = re.findall(r"(?m)^#+ (.+)$", text)
    plain = [re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings]
    return {re.sub(r"[ -]+", "-", heading.strip()) for heading in plain}


@pages
def test_links_and_anchors_exist(page):
    for link in LINK.findall(prose(page)):
        if link.startswith("https://"):
            continue
        path, _, anchor = link.partition("#")
        target = (page.parent / path).resolve() if path else page
        assert target.exists(), f"{page.name} links to {link}"
        if anchor:
            assert anchor in anchors(prose(target)), f"{page.name} links to {link}"


@pages
def test_paths_exist(page):
    for path in PATH.findall(page.read_text()):
        if not re.search(r"/[A-Z]+\b", path):  # ROOM, NAME.py
            assert (ROOT / path).exists(), f"{page.name} names {path}"


@pages
def test_modules_and_their_members_exist(page):
    for name in MODULE.findall(page.read_text()):
        if name == "blip2_jax.load":  # a method call may follow
            continue
        resolve(name)


def resolve(name: str) -> object:
    """Import a dotted name: a module, or a member of one."""
    parts = name.split(".")
    for length in range(len(parts), 0, -1):
        try:
            found: object = importlib.import_module(".".join(parts[:length]))
        except ModuleNotFoundError:
            continue
        for part in parts[length:]:
            found = getattr(found, part)
        return found
    raise AssertionError(f"there is no {name}")


def test_every_page_is_in_the_navigation():
    navigation = re.findall(r"[\w/]+\.md", (ROOT / "mkdocs.yml").read_text())
    docs = ROOT / "docs"
    assert sorted(navigation) == sorted(
        str(page.relative_to(docs)) for page in docs.rglob("*.md")
    )


def test_configurations_of_the_readme_exist():
    table = (ROOT / "README.md").read_text().split("| configurations |")[1]
    first_cells = [row.split("|")[1] for row in table.split("\n\n")[0].splitlines()[2:]]
    names = re.findall(r"`(\w+)`", " ".join(first_cells))
    assert len(names) > 20
    for name in names:
        assert (ROOT / "configs" / f"{name}.py").exists(), name
