"""Recognition of the layout of a folder."""

from __future__ import annotations

import glob
import os
import pathlib
from collections.abc import Mapping, Sequence

from blip2_jax.data.feature_manifest import is_feature_cache
from blip2_jax.data.sources.arrow_table import SavedDatasetSource
from blip2_jax.data.sources.columns import find_columns
from blip2_jax.data.sources.image_folder import (
    IMAGE_SUFFIXES,
    METADATA_FILES,
    ImageFolderSource,
    TextFilesSource,
    find_metadata,
    list_pairs,
)
from blip2_jax.data.sources.layout_files import (
    SHARDS,
    TABLE_SUFFIXES,
    CompleteSpec,
    GivenColumns,
    Match,
    Request,
    check_no_split,
    match_arrow,
    match_file,
    match_shards,
    sample_table,
    split_option,
)
from blip2_jax.data.sources.split_names import choose_split, split_of
from blip2_jax.parallel.files import read_json
from blip2_jax.parallel.paths import glob_paths

# Sub-folders that are searched for annotations too.
_SUBFOLDERS = ("annotations", "captions", "data")
# Files that `parallel.shard_jobs` and `prepare` write beside shards.
_JOB_FILES = ("job.json", "manifest.json", "dropped.jsonl")
_REPORT_SUFFIX = ".report.json"
_LOOKED_FOR = (
    f"{' or '.join(METADATA_FILES)}; state.json or dataset_dict.json of save_to_disk; "
    f"annotations ({' '.join(TABLE_SUFFIXES)}), Parquet, ArrayRecord or tar "
    f"files, there or in {', '.join(_SUBFOLDERS)}; folders of splits; images with a "
    ".txt file each"
)


def match_folder(folder: pathlib.Path, request: Request) -> tuple[Match, Request]:
    """Recognise the layout of a folder.

    Returns:
      The match, and the request that remains after a split was chosen.

    Raises:
      ValueError: nothing matches, or several layouts or splits do.
    """
    if is_feature_cache(folder):
        return _match_feature_cache(str(folder)), request
    if (folder / "state.json").is_file():
        return match_arrow(str(folder), SavedDatasetSource, request.columns), request
    if (folder / "dataset_dict.json").is_file():
        names = read_json(folder / "dataset_dict.json").get("splits", [])
        return _match_split({name: folder / name for name in names}, folder, request)
    if metadata := find_metadata(str(folder)):
        return _match_image_folder(str(folder), metadata, request.columns), request
    has_pairs = _has_text_beside_image(folder)
    matches, problems = _match_files(folder, request.columns, has_pairs)
    if has_pairs:
        matches.append(_match_text_files(str(folder)))
    if matches:
        return _choose(matches, folder, request)
    folders = {
        path.name: path
        for path in sorted(folder.iterdir())
        if path.is_dir() and split_of(path.name)
    }
    if folders:
        return _match_split(folders, folder, request)
    if list_pairs(str(folder)).texts:
        return _match_text_files(str(folder)), request
    raise ValueError(
        f"{folder} has no known layout; looked for: {_LOOKED_FOR}"
        + (f". Not usable: {'; '.join(problems)}" if problems else "")
    )


def _match_split(
    folders: Mapping[str, pathlib.Path], folder: pathlib.Path, request: Request
) -> tuple[Match, Request]:
    """Choose a folder by its split and recognise its layout."""
    name = choose_split(folders, request.split, request.default_split, str(folder))
    return match_folder(folders[name], request.without_split())


def _choose(
    matches: Sequence[Match], folder: pathlib.Path, request: Request
) -> tuple[Match, Request]:
    """Choose one of several matches by the split that its name contains."""
    if len(matches) == 1:
        return matches[0], request
    by_split = {split_of(pathlib.Path(match.path).name): match for match in matches}
    if len(by_split) < len(matches) or "" in by_split:
        raise ValueError(
            f"{folder} has several layouts: {', '.join(map(str, matches))}; give the "
            "path of one of them"
        )
    split = choose_split(by_split, request.split, request.default_split, str(folder))
    return by_split[split], request.without_split()


def _match_image_folder(folder: str, metadata: str, columns: GivenColumns) -> Match:
    """Recognise the columns of a folder's metadata."""
    title = f"{ImageFolderSource.title} with {pathlib.Path(metadata).name}"
    table = ImageFolderSource.read_table(metadata)
    found = find_columns(table.names, columns, metadata)

    def complete(request: Request) -> CompleteSpec:
        _, splits = sample_table(table, found)
        spec = {"kind": "image_folder", "path": folder, "columns": found.as_options()}
        spec |= split_option(folder, found.split, splits, request)
        return CompleteSpec(title, spec, folder)

    return Match(title, folder, complete)


def _match_text_files(folder: str) -> Match:
    """Recognise a folder of images with text files."""

    def complete(request: Request) -> CompleteSpec:
        check_no_split(folder, request)
        spec = {"kind": TextFilesSource.kind, "path": folder}
        return CompleteSpec(TextFilesSource.title, spec, folder)

    return Match(TextFilesSource.title, folder, complete)


def _match_feature_cache(folder: str) -> Match:
    """Recognise a cache of image features."""
    title = "cached features"

    def complete(request: Request) -> CompleteSpec:
        check_no_split(folder, request)
        spec = {"kind": "cached_features", "path": folder}
        return CompleteSpec(title, spec, folder)

    return Match(title, folder, complete)


def _match_files(
    folder: pathlib.Path, columns: GivenColumns, has_pairs: bool
) -> tuple[list[Match], list[str]]:
    """Match the files of a folder; also return why other files do not match."""
    matches: list[Match] = []
    problems: list[str] = []
    for directory in (folder, *(folder / name for name in _SUBFOLDERS)):
        if not directory.is_dir():
            continue
        files = sorted(path for path in directory.iterdir() if path.is_file())
        for suffix in SHARDS:
            shards = [path for path in files if path.suffix == suffix]
            matches += [match_shards(pattern) for pattern in _patterns(shards)]
            files = _without_shards(files, shards)
        parquet = _patterns([path for path in files if path.suffix == ".parquet"])
        for path in [*parquet, *_tables(files, has_pairs)]:
            try:
                matches.append(match_file(path, columns))
            except ValueError as error:
                problems.append(str(error))
    return matches, problems


def _tables(files: Sequence[pathlib.Path], has_pairs: bool) -> list[str]:
    """Return the files that may be tables: not the files beside single images."""
    images = {path.stem for path in files if path.suffix.lower() in IMAGE_SUFFIXES}
    return [
        str(path)
        for path in files
        if path.suffix.lower() in TABLE_SUFFIXES
        and path.stem not in images
        and not (has_pairs and path.suffix == ".txt")
    ]


def _without_shards(
    files: list[pathlib.Path], shards: Sequence[pathlib.Path]
) -> list[pathlib.Path]:
    """Leave out shards and what img2dataset and `prepare` write beside them."""
    if not shards:
        return files
    paths, stems = set(shards), {shard.stem for shard in shards}
    return [
        path
        for path in files
        if path not in paths
        and path.stem.removesuffix("_stats") not in stems
        and path.name not in _JOB_FILES
        and not path.name.endswith(_REPORT_SUFFIX)
    ]


def _patterns(paths: Sequence[pathlib.Path]) -> list[str]:
    """Return a path or glob pattern for the files of each split.

    Raises:
      ValueError: no pattern matches the files of a split only.
    """
    by_split: dict[str, list[pathlib.Path]] = {}
    for path in paths:
        by_split.setdefault(split_of(path.stem), []).append(path)
    return [_pattern(files) for files in by_split.values()]


def _pattern(files: Sequence[pathlib.Path]) -> str:
    """Return a path or glob pattern that matches these files of a folder only."""
    if len(files) == 1:
        return str(files[0])
    directory, suffix = glob.escape(str(files[0].parent)), files[0].suffix
    prefix = os.path.commonprefix([path.name for path in files])  # noqa: RUF071
    for pattern in (f"{directory}/*{suffix}", f"{directory}/{prefix}*{suffix}"):
        if sorted(map(str, glob_paths(pattern))) == sorted(map(str, files)):
            return pattern
    raise ValueError(
        f"the names of the splits' files in {files[0].parent} have no common start; "
        "give a pattern"
    )


def _has_text_beside_image(folder: pathlib.Path) -> bool:
    """Return True if a text file in the folder has the name of an image there."""
    names = [path.name for path in folder.iterdir()]
    texts = {name.removesuffix(".txt") for name in names if name.endswith(".txt")}
    return any(
        stem in texts and suffix.lower() in IMAGE_SUFFIXES
        for stem, suffix in map(os.path.splitext, names)
    )
