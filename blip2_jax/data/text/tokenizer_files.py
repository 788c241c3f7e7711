"""Tokenizers of transformers: where their files are, and how they are opened.

A *spec* names a tokenizer: a directory, a name of the hub or "shapes:bert", and on
further lines the tokens that are added to its vocabulary (`with_tokens`).

Tokenizers of language models are opened as their folder stores them. transformers
chooses the class of a tokenizer by the `model_type` in the `config.json` beside it.
Some classes read no more than the vocabulary of a `tokenizer.json` and split texts in
their own way, which is wrong for a tokenizer from elsewhere. Without a `tokenizer.json`
no class puts BOS before a text unless the folder says so, although the models of a
`tokenizer.model` were trained with it.
"""

from __future__ import annotations

import pathlib
from collections.abc import Sequence
from typing import Any

from blip2_jax.data import hub
from blip2_jax.data.text.bert_casing import check_casing, undeclared_casing
from blip2_jax.data.text.vocabulary_files import vocabulary_size
from blip2_jax.parallel.files import read_json

# Prefix of the spec of a Llama's tokenizer whose texts shall begin as in InstructBLIP.
LAVIS_PREFIX = "lavis:"
SHAPES_TOKENIZERS = pathlib.Path(__file__).parents[1] / "shapes" / "tokenizers"
# Files of a vocabulary; a directory has a tokenizer if it has those of one line.
VOCABULARIES = (
    ("tokenizer.json",),
    ("vocab.txt",),
    ("vocab.json", "merges.txt"),
    ("spiece.model",),
    ("tokenizer.model",),
)
# Words, numbers, contractions, several spaces and lines, letters of other scripts.
PROBES = (
    "A photo of two dogs, it's 12.5 km away",
    "what is in the picture?",
    " Gr\u00f6\u00dfe:  \u4e2d\u6587 caf\u00e9\n\n\tw1 w2 ",
)
MAX_SPECIAL = 16  # special tokens whose surroundings are compared


def with_tokens(spec: str, tokens: Sequence[str]) -> str:
    """Return the spec of a tokenizer with further tokens, which hold no spaces."""
    return "\n".join([spec, *tokens])


def split_spec(spec: str) -> tuple[str, list[str]]:
    """Return the directory or name in a spec, and the added tokens."""
    base, *tokens = spec.split("\n")
    return base, tokens


def open_tokenizer(spec: str, language_model: bool = False, **options: Any) -> Any:
    """Open a tokenizer of transformers.

    Args:
      spec: see the module's docstring.
      language_model: see `_open`.
      **options: arguments of `from_pretrained`.

    Raises:
      FileNotFoundError: the directory or a vocabulary in it does not exist.
      ValueError: a file cannot be read as its format demands, needs code of its own,
        which is never run, the loaded tokenizer lacks words of the directory's
        vocabulary, or an added token is a word of it.
    """
    base, tokens = split_spec(spec)
    directory = tokenizer_directory(base)
    expected = vocabulary_size(directory)
    options |= undeclared_casing(directory)
    try:
        tokenizer = _open(directory, language_model, **options)
    except Exception as error:  # the Rust library raises plain `Exception`
        message = " ".join(str(error).split())
        raise ValueError(
            f"the tokenizer in {directory} cannot be loaded: {message}"
        ) from error
    if len(tokenizer) < expected:
        raise ValueError(
            f"the vocabulary in {directory} has {expected} words, but only "
            f"{len(tokenizer)} were loaded"
        )
    check_casing(tokenizer, directory)
    if spec.startswith(LAVIS_PREFIX):
        _begin_with_end_token(tokenizer)
    _add_tokens(tokenizer, tokens, base)
    return tokenizer


def save_tokenizer(
    spec: str, directory: pathlib.Path, language_model: bool = False
) -> None:
    """Write a tokenizer with its added tokens to a directory."""
    open_tokenizer(spec, language_model).save_pretrained(directory)


def tokenizer_directory(spec: str) -> pathlib.Path:
    """Return the directory of a tokenizer's files, fetched if they are of the hub.

    Args:
      spec: without added tokens.

    Raises:
      FileNotFoundError: the directory or a vocabulary in it does not exist.
      HubError: the files cannot be fetched.
    """
    spec = spec.removeprefix(LAVIS_PREFIX)
    if spec.startswith("shapes:"):
        directory = SHAPES_TOKENIZERS / spec.removeprefix("shapes:")
    else:
        directory = hub.local_path(spec, *hub.TOKENIZER_FILES)
    if not directory.is_dir():
        raise FileNotFoundError(
            f"tokenizer {spec!r}: the directory {directory} does not exist; a name of "
            "the hub has the form ORG/NAME"
        )
    for names in VOCABULARIES:
        if all((directory / name).is_file() for name in names):
            return directory
    expected = ", or ".join(" with ".join(names) for names in VOCABULARIES)
    raise FileNotFoundError(f"tokenizer {spec!r} has no vocabulary ({expected})")


def _open(directory: pathlib.Path, language_model: bool, **options: Any) -> Any:
    """Open a tokenizer of transformers; that of a language model as it is stored.

    Args:
      directory: of the tokenizer's files.
      language_model: it is a language model's.
      **options: arguments of `from_pretrained`.
    """
    from transformers import AutoTokenizer, PreTrainedTokenizerFast  # slow to import

    options |= {"local_files_only": True}
    stored = directory / "tokenizer.json"
    if language_model and not stored.is_file():
        options = undeclared_options(directory) | options
    tokenizer = AutoTokenizer.from_pretrained(
        str(directory), trust_remote_code=False, **options
    )
    # `PreTrainedTokenizerFast` itself reads the file as it is.
    is_rebuilt = language_model and type(tokenizer) is not PreTrainedTokenizerFast
    if is_rebuilt and stored.is_file() and not encodes_alike(tokenizer, stored):
        return PreTrainedTokenizerFast.from_pretrained(
            str(directory), trust_remote_code=False, **options
        )
    return tokenizer


def _begin_with_end_token(tokenizer: Any) -> None:
    """Let the texts of a Llama's tokenizer begin with its end token.

    LAVIS does so for InstructBLIP's Vicuna. It also adds [PAD]; here padding, which is
    masked, is the unknown word, so that the token table needs no further row.
    """
    from tokenizers import processors

    end, end_id = tokenizer.eos_token, tokenizer.eos_token_id
    if end_id is None:
        raise ValueError("the tokenizer has no eos_token")
    tokenizer.pad_token = tokenizer.unk_token
    tokenizer.bos_token = end
    tokenizer.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{end} $A", special_tokens=[(end, end_id)]
    )


def _add_tokens(tokenizer: Any, tokens: Sequence[str], base: str) -> None:
    """Append tokens to a vocabulary.

    Raises:
      ValueError: one of them is in the vocabulary, or [DEC], which comes last.
    """
    words = tokenizer.get_vocab()
    if tokens and "[DEC]" in words:
        raise ValueError(
            f"{base} holds [DEC], which comes behind all other tokens: add tokens to "
            "the tokenizer of the BERT itself"
        )
    known = [token for token in tokens if token in words]
    if known:
        raise ValueError(
            f"{known[0]!r} is a token of {base} already: name only tokens that it lacks"
        )
    tokenizer.add_tokens(list(tokens))


def undeclared_options(directory: pathlib.Path) -> dict[str, Any]:
    """Return `add_bos_token` for a SentencePiece model whose folder does not say it."""
    config = directory / "tokenizer_config.json"
    declared = read_json(config) if config.is_file() else {}
    has_model = (directory / "tokenizer.model").is_file()
    if not has_model or declared.get("add_bos_token") is not None:
        return {}
    return {"add_bos_token": True}


def encodes_alike(tokenizer: Any, stored: pathlib.Path) -> bool:
    """Return True if a tokenizer encodes and decodes texts as a `tokenizer.json` does.

    Texts are compared without the tokens before and after them, which the
    `tokenizer_config.json` may declare in another way.
    """
    from tokenizers import Tokenizer

    expected, actual = Tokenizer.from_file(str(stored)), tokenizer.backend_tokenizer
    added = expected.get_added_tokens_decoder().values()
    special = [token.content for token in added if token.special][:MAX_SPECIAL]
    for text in (*PROBES, *(f"a{token}b {token} c" for token in special)):
        ids = expected.encode(text, add_special_tokens=False).ids
        if actual.encode(text, add_special_tokens=False).ids != ids:
            return False
        if actual.decode(ids).strip() != expected.decode(ids).strip():
            return False
    return True
