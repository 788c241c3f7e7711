"""Files of the Hugging Face hub, named where a path is taken.

    ORG/NAME                                  a model
    hf://ORG/NAME@REVISION                    at a branch, tag or commit
    hf://ORG/NAME/FILE                        one file of it
    hf://datasets/ORG/NAME@REVISION/FOLDER    data

Paths on object stores are fetched here too (see `parallel.store_cache`). A local file
or folder of the same name comes first. `huggingface_hub` downloads into
its cache and reads HF_HOME, HF_ENDPOINT, HF_TOKEN and HF_HUB_OFFLINE. A repository
whose files are in the cache is used as it is, without a request to the hub.
"""

from __future__ import annotations

import dataclasses
import fnmatch
import functools
import glob
import logging
import pathlib
import re
import sys
from typing import Any

from blip2_jax.data.hub_errors import HubError, HubName, explained
from blip2_jax.parallel.paths import as_path, is_remote
from blip2_jax.parallel.store_cache import local_copy

CONFIG_FILES = (
    "config.json",
    "generation_config.json",
    "preprocessor_config.json",
    "processor_config.json",
    "model.safetensors.index.json",
    "model.json",  # of this package's folders, as is the next
    "manifest.json",
)
TOKENIZER_FILES = (
    "tokenizer.json",
    "tokenizer_config.json",
    "chat_template.jinja",
    "special_tokens_map.json",
    "added_tokens.json",
    "vocab.txt",
    "vocab.json",
    "merges.txt",
    "spiece.model",
    "tokenizer.model",
)
TOKENIZER_FOLDERS = ("qformer_tokenizer/*", "language_tokenizer/*")
# A name with one of these suffixes is a file's.
FILE_SUFFIXES = (".pth", ".pt", ".bin", ".safetensors", ".json", ".npz")
_REVISION = r"(?:@(?P<revision>refs/(?:pr|convert)/[^/]+|[^/@]+))?"
_REPOSITORY = r"(?P<repository>[\w][\w.-]*/[\w][\w.-]*)"
_NAME = re.compile(_REPOSITORY + _REVISION)
# `pathlib` writes `hf://` as `hf:/`.
_URI = re.compile(
    rf"hf:/+(?P<kind>(?:models|datasets)/)?{_REPOSITORY}{_REVISION}(?:/(?P<path>.+))?"
)


@dataclasses.dataclass(frozen=True)
class Repository:
    """A repository at one commit; its files are fetched when they are needed.

    Attributes:
      name: its name.
      folder: its folder in the cache, which holds the files fetched so far.
      files: paths of all its files.
    """

    name: HubName
    folder: pathlib.Path
    files: tuple[str, ...]

    @property
    def pinned(self) -> str:
        """Return the name at this commit, which stands for the same files forever."""
        return self.name.at(self.folder.name)

    def fetch(self, *patterns: str) -> list[pathlib.Path]:
        """Fetch the files that match any of the patterns; return their paths.

        Code is left out.

        Raises:
          HubError: a file cannot be fetched.
        """
        matching = [
            file
            for file in self.files
            if not file.endswith(".py")
            and (
                file in patterns or any(fnmatch.fnmatchcase(file, p) for p in patterns)
            )
        ]
        missing = [file for file in matching if not (self.folder / file).is_file()]
        with explained(self.name):
            self._download(missing)
        return [self.folder / file for file in matching]

    def _download(self, files: list[str]) -> None:
        from huggingface_hub import hf_hub_download, snapshot_download

        if len(files) == 1:
            hf_hub_download(filename=files[0], **self._where())
        elif files:
            patterns = [glob.escape(file) for file in files]
            bars = None if sys.stderr.isatty() else _no_bars()
            snapshot_download(**self._where(), allow_patterns=patterns, tqdm_class=bars)

    def fetch_path(self, path: str) -> pathlib.Path:
        """Fetch a file, all files of a folder, or all that match a pattern.

        Args:
          path: in the repository; "" fetches all files.

        Returns:
          Its path in the cache; a pattern is kept.

        Raises:
          HubError: the repository has no such file, or it cannot be fetched.
        """
        path = path.strip("/")
        if not self.fetch(path, f"{path}/*" if path else "*"):
            some = ", ".join(self.files[:5]) or "nothing"
            raise HubError(
                f"{self.name.typed}: the repository has no {path!r}; it has "
                f"{len(self.files)} files: {some}{', ...' * (len(self.files) > 5)}"
            )
        return self.folder / path

    def tensors(self, file: str) -> dict[str, tuple[tuple[int, ...], str]]:
        """Read shapes and safetensors' dtypes by name from the header of a remote file.

        Raises:
          HubError: the header cannot be fetched, or the file is damaged.
        """
        from huggingface_hub import HfApi
        from huggingface_hub.errors import SafetensorsParsingError

        where = self._where()
        try:
            with explained(self.name):
                header = HfApi().parse_safetensors_file_metadata(filename=file, **where)
        except SafetensorsParsingError as error:
            raise HubError(
                f"{self.name.typed}: {file} is not a safetensors file: {error}"
            ) from error
        return {
            name: (tuple(tensor.shape), tensor.dtype)
            for name, tensor in header.tensors.items()
        }

    def _where(self) -> dict[str, Any]:
        return {
            "repo_id": self.name.repository,
            "repo_type": self.name.kind,
            "revision": self.folder.name,
        }


def parse_name(spec: str | pathlib.Path) -> HubName | None:
    """Parse a name of the hub; None if `spec` is a local path.

    `A/B` is a name of the hub if there is neither a file or folder `A/B` nor a folder
    `A`; with the prefix `hf://` it always is.

    Raises:
      HubError: `spec` begins with `hf:` and is no name.
    """
    text = str(spec)
    if text.startswith("hf:"):
        match = _URI.fullmatch(text)
        if match is None:
            raise HubError(
                f"{text!r} is no name of the hub; it has the form "
                "hf://ORG/NAME[@REVISION][/FILE] or hf://datasets/ORG/NAME..."
            )
        kind = (match["kind"] or "models/").removesuffix("s/")
        path = match["path"] or ""
        return HubName(match["repository"], match["revision"], path, kind, text)
    path = pathlib.Path(text)
    match = _NAME.fullmatch(text)
    if match is None or path.suffix in FILE_SUFFIXES or path.exists():
        return None
    if path.parent.is_dir():
        return None
    return HubName(match["repository"], match["revision"], typed=text)


def local_path(spec: str | pathlib.Path, *patterns: str) -> pathlib.Path:
    """Return the local path of a file or folder; fetch it from the hub or a store.

    Args:
      spec: a path, also on a store, or a name of the hub (see the module).
      *patterns: of the files to fetch of a repository of a model, besides
        `CONFIG_FILES`. Weights are fetched when an array of them is read
        (`convert.files.checkpoint_files`). Of data, all files are fetched.

    Raises:
      HubError: the hub has no such files, or they cannot be fetched.
      StoreError: the store is away for too long.
    """
    name = parse_name(spec)
    if name is None:
        return local_copy(spec)
    repository = open_repository(name)
    if name.path or name.kind == "dataset":
        return repository.fetch_path(name.path)
    repository.fetch(*patterns)
    return repository.folder


def data_path(spec: str | pathlib.Path) -> str:
    """Return the path of data: fetched from the hub, but not from a store.

    Sources read from a store what they need.

    Raises:
      HubError: see `local_path`.
    """
    return str(as_path(spec) if is_remote(spec) else local_path(spec))


def pinned(spec: str) -> str:
    """Return a name of the hub with its present commit, and a local path as it is.

    Raises:
      HubError: the hub has no such repository, or it cannot be reached.
    """
    name = parse_name(spec)
    return name.at(open_repository(name).folder.name) if name else spec


def cached_name(path: str) -> str:
    """Return the name, with its commit, of a path in the cache that was opened here.

    Other paths are returned as they are.
    """
    for folder, repository in _OPENED.items():
        if path == str(folder) or path.startswith(f"{folder}/"):
            return repository.pinned + path.removeprefix(str(folder))
    return path


def repository_at(folder: pathlib.Path) -> Repository | None:
    """Return the repository that `local_path` opened at a folder; None if none."""
    return _OPENED.get(folder)


_OPENED: dict[pathlib.Path, Repository] = {}


def forget_repositories() -> None:
    """Forget the commits and listings that this process knows, as for another hub."""
    _open.cache_clear()
    _OPENED.clear()


def open_repository(name: HubName) -> Repository:
    """Open a repository: find its commit, list its files, fetch `CONFIG_FILES`.

    The commit stays the same for the life of the process.

    Raises:
      HubError: there is no such repository, or it cannot be reached.
    """
    repository = _open(dataclasses.replace(name, path=""))
    return dataclasses.replace(repository, name=name)


@functools.cache
def _open(name: HubName) -> Repository:
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import (
        CachedRepoTreeNotFoundError,
        LocalEntryNotFoundError,
    )

    # It warns of a repository that has none of the files, as one of a single `.pth`.
    logging.getLogger(snapshot_download.__module__).setLevel(logging.ERROR)
    where: dict[str, Any] = {"repo_type": name.kind, "revision": name.revision}
    where["allow_patterns"] = CONFIG_FILES if name.kind == "model" else ()
    where["tqdm_class"] = _no_bars()
    try:
        folder = snapshot_download(name.repository, local_files_only=True, **where)
        files = _cached_files(name, folder)
    except (LocalEntryNotFoundError, CachedRepoTreeNotFoundError):
        with explained(name):
            folder = snapshot_download(name.repository, **where)
        try:
            files = _cached_files(name, folder)
        except CachedRepoTreeNotFoundError:  # offline, and cached by another program
            found = pathlib.Path(folder).rglob("*")
            files = [path.relative_to(folder).as_posix() for path in found]
    repository = Repository(name, pathlib.Path(folder), tuple(sorted(files)))
    return _OPENED.setdefault(repository.folder, repository)


def _no_bars() -> Any:
    """Return a class of progress bars that show nothing."""
    from tqdm.auto import tqdm

    class NoBar(tqdm):
        """A progress bar that shows nothing."""

        def __init__(self, *args: Any, **options: Any) -> None:
            options.pop("name", None)
            super().__init__(*args, **options | {"disable": True})

    return NoBar


def _cached_files(name: HubName, folder: str) -> list[str]:
    """List the paths of a repository's files from the listing in the cache."""
    from huggingface_hub import get_cached_repo_tree

    commit = pathlib.Path(folder).name
    tree = get_cached_repo_tree(name.repository, repo_type=name.kind, revision=commit)
    return [file.path for file in tree]
