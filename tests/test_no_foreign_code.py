"""Loading a stranger's folder runs no code of it and asks nothing on standard input."""

import ast
import io
import json
import pathlib
import pickle
import shutil
import sys

import pytest

import blip2_jax
from blip2_jax.data.text.tokenizer_files import tokenizer_directory
from blip2_jax.data.text.tokenizers import load_tokenizer
from tests.support import peer_models as peers

PACKAGE = pathlib.Path(blip2_jax.__file__).parent
# Calls that load something by the description in a folder, and the argument that keeps
# them from running code of it.
GUARDED = {
    "from_pretrained": ("trust_remote_code", False),
    "load_dataset": ("trust_remote_code", False),
    "pipeline": ("trust_remote_code", False),
}
FORBIDDEN = {
    ("pickle", "load"),
    ("pickle", "loads"),
    ("torch", "jit"),
    ("yaml", "load"),
}
# Files whose processes send pickles to each other and read none from a disk.
OWN_PICKLES = ("parallel/process_runner.py", "parallel/ray_runner.py")


def calls():
    """Yield file, line and node of every call in the package."""
    for path in sorted(PACKAGE.rglob("*.py")):
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Call):
                yield f"{path.relative_to(PACKAGE)}:{node.lineno}", node


def name_of(node):
    """Return (module, function) of a call; "" for the module of a plain function."""
    function = node.func
    if isinstance(function, ast.Attribute):
        owner = function.value
        return (owner.id if isinstance(owner, ast.Name) else "", function.attr)
    return ("", function.id if isinstance(function, ast.Name) else "")


def keyword(node, name):
    """Return the literal value of a keyword; `**options` counts if it is a dict."""
    for each in node.keywords:
        if each.arg == name and isinstance(each.value, ast.Constant):
            return each.value.value
    return None


def test_no_call_trusts_a_folder():
    seen = set()
    for where, node in calls():
        owner, function = name_of(node)
        if function in GUARDED and owner[:1].isupper():
            seen.add(function)
            argument, value = GUARDED[function]
            assert keyword(node, argument) is value, f"{where} lacks {argument}={value}"
        if (owner, function) != ("pickle", "loads") or not where.startswith(
            OWN_PICKLES
        ):
            assert (owner, function) not in FORBIDDEN, where
        if (owner, function) == ("np", "load"):
            assert keyword(node, "allow_pickle") in (None, False), where
    assert "from_pretrained" in seen


def test_torch_reads_weights_only():
    sites = [where for where, node in calls() if name_of(node) == ("torch", "load")]
    assert len(sites) == 1 and sites[0].startswith("convert/files/formats.py")
    assert '"weights_only": True' in (PACKAGE / "convert/files/formats.py").read_text()


def test_nothing_reads_standard_input():
    for where, node in calls():
        assert name_of(node) != ("", "input"), where


@pytest.fixture
def asks(monkeypatch):
    """Answer every question on standard input with yes."""
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 9))


def stranger(tmp_path, local_class=""):
    """Write a tokenizer whose configuration names code in its directory."""
    folder, ran = tmp_path / "tokenizer", tmp_path / "code_ran"
    shutil.copytree(tokenizer_directory("shapes:opt"), folder)
    (folder / "evil.py").write_text(
        f"import pathlib\npathlib.Path({str(ran)!r}).touch()\n"
        "from transformers import PreTrainedTokenizerFast\n"
        "class Evil(PreTrainedTokenizerFast): pass\n"
    )
    file = folder / "tokenizer_config.json"
    content = json.loads(file.read_text()) if file.exists() else {}
    content["auto_map"] = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
    content["tokenizer_class"] = local_class or "Evil"
    file.write_text(json.dumps(content))
    return folder, ran


def test_the_code_of_a_tokenizer_never_runs(tmp_path, asks):
    folder, ran = stranger(tmp_path)
    with pytest.raises(ValueError, match=r"tokenizer in .* cannot be loaded"):
        load_tokenizer(str(folder), language_model=True)
    assert not ran.exists()
    assert sys.stdin.read() == "y\n" * 9  # nothing was asked


def test_the_code_of_a_model_never_runs(tmp_path, asks):
    """A folder with `auto_map` in config.json is refused by that name."""
    peers.write_huggingface(tmp_path / "theirs", "opt")
    file, ran = tmp_path / "theirs" / "config.json", tmp_path / "code_ran"
    (tmp_path / "theirs" / "evil.py").write_text(f"open({str(ran)!r}, 'w')\n")
    content = json.loads(file.read_text())
    for part in (content, content["text_config"]):
        part["auto_map"] = {"AutoConfig": "evil.Evil"}
        file.write_text(json.dumps(content))
        with pytest.raises(ValueError, match=r"config\.json: (text_config\.)?auto_map"):
            blip2_jax.load(tmp_path / "theirs")
        del part["auto_map"]
    assert not ran.exists()


class RunsCode:
    """A pickle that would run code."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (pathlib.Path.touch, (self.path,))


@pytest.mark.parametrize("name", ["pytorch_model.bin", "x.pt", "x.pth"])
def test_the_code_of_a_pickle_never_runs(tmp_path, name):
    peers.torch_and_transformers()
    ran = tmp_path / "code_ran"
    folder = tmp_path / "folder"
    folder.mkdir()
    (folder / name).write_bytes(pickle.dumps({"model": RunsCode(ran)}))
    for path in (folder, folder / name):
        with pytest.raises(ValueError, match="is refused"):
            blip2_jax.load(path)
    assert not ran.exists()
