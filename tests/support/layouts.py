"""Writers of one small data set in every layout, with the libraries that people use."""

import csv
import json
import pathlib
from collections.abc import Callable

import pyarrow as pa
import pyarrow.parquet as pq

from blip2_jax.data.prepare.job import PrepareJob, PrepareOptions
from blip2_jax.data.prepare.manifest import write_manifest
from blip2_jax.parallel.shard_jobs import run_shards
from tests.support.generated_data import captions, encoded, picture, write_tar

COUNT = 5
NAMES = [f"{number:04d}.png" for number in range(COUNT)]
TEXTS = [captions(number) for number in range(COUNT)]
IMAGES = [encoded(picture(number)) for number in range(COUNT)]


def write_images(folder: pathlib.Path) -> pathlib.Path:
    """Write the photos and return their folder."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, data in zip(NAMES, IMAGES, strict=True):
        (folder / name).write_bytes(data)
    return folder


def rows() -> list[tuple[str, str]]:
    """Return file name and caption of every caption."""
    return [
        (name, text) for name, texts in zip(NAMES, TEXTS, strict=True) for text in texts
    ]


def write_csv(folder: pathlib.Path) -> pathlib.Path:
    """Write a CSV file, as Flickr8k's `captions.txt` on Kaggle."""
    write_images(folder / "Images")
    with (folder / "captions.txt").open("w", newline="") as file:
        csv.writer(file).writerows([("image", "caption"), *rows()])
    return folder


def write_tsv(folder: pathlib.Path) -> pathlib.Path:
    """Write a TSV file with the directory of the images in the names."""
    write_images(folder / "photos")
    with (folder / "pairs.tsv").open("w", newline="") as file:
        writer = csv.writer(file, "excel-tab")
        writer.writerow(("Title", "FilePath"))
        writer.writerows((text, f"photos/{name}") for name, text in rows())
    return folder / "pairs.tsv"


def write_flickr30k(folder: pathlib.Path) -> pathlib.Path:
    """Write Flickr30k's `results.csv`: bars and spaces between the cells."""
    write_images(folder / "flickr30k_images")
    lines = ["image_name| comment_number| comment"]
    lines += [f"{name}| {n % 2}| {text}" for n, (name, text) in enumerate(rows())]
    (folder / "results.csv").write_text("\n".join(lines) + "\n")
    return folder


def write_json_lists(folder: pathlib.Path) -> pathlib.Path:
    """Write a list of objects with a list of texts each."""
    write_images(folder / "imgs")
    objects = [
        {"file_name": name, "text": texts}
        for name, texts in zip(NAMES, TEXTS, strict=True)
    ]
    (folder / "data.json").write_text(json.dumps({"version": 1, "data": objects}))
    return folder / "data.json"


def write_json_lines(folder: pathlib.Path) -> pathlib.Path:
    """Write JSON lines that name the images by ids without a suffix."""
    write_images(folder / "images")
    lines = [
        json.dumps({"image_id": name.removesuffix(".png"), "sentence": text})
        for name, text in rows()
    ]
    (folder / "train.jsonl").write_text("\n".join(lines))
    return folder


def write_lavis(folder: pathlib.Path) -> pathlib.Path:
    """Write LAVIS' layout."""
    write_images(folder)
    objects = [{"image": name, "caption": text} for name, text in rows()]
    (folder / "annotations.json").write_text(json.dumps(objects))
    return folder


def write_caption_by_file(folder: pathlib.Path) -> pathlib.Path:
    """Write `{file: [caption, ...]}`."""
    write_images(folder / "pictures")
    content = dict(zip(NAMES, TEXTS, strict=True))
    (folder / "captions.json").write_text(json.dumps(content, indent=1))
    return folder


def write_coco(folder: pathlib.Path) -> pathlib.Path:
    """Write COCO's layout: `annotations/` beside the folders of images."""
    write_images(folder / "train2017")
    (folder / "annotations").mkdir()
    content = {
        "images": [{"id": n, "file_name": name} for n, name in enumerate(NAMES)],
        "annotations": [
            {"id": 10 * n + k, "image_id": n, "caption": text}
            for n, texts in enumerate(TEXTS)
            for k, text in enumerate(texts)
        ],
    }
    path = folder / "annotations" / "captions_train2017.json"
    path.write_text(json.dumps(content))
    boxes = {**content, "annotations": [{"image_id": 0, "bbox": [0, 0, 1, 1]}]}
    (path.parent / "instances_train2017.json").write_text(json.dumps(boxes))
    return folder


def write_karpathy(folder: pathlib.Path) -> pathlib.Path:
    """Write Karpathy's layout with all images in "train" and "restval"."""
    write_images(folder / "Flicker8k_Dataset")
    content = [
        {
            "filename": name,
            "split": ("train", "restval")[n % 2],
            "imgid": n,
            "sentences": [{"raw": text} for text in texts],
        }
        for n, (name, texts) in enumerate(zip(NAMES, TEXTS, strict=True))
    ]
    path = folder / "dataset_flickr8k.json"
    path.write_text(json.dumps({"images": content, "dataset": "flickr8k"}))
    return folder


def write_text_files(folder: pathlib.Path) -> pathlib.Path:
    """Write a text file beside every image."""
    write_images(folder)
    for name, texts in zip(NAMES, TEXTS, strict=True):
        path = (folder / name).with_suffix(".txt")
        path.write_text("\n".join(texts) + "\n")
    return folder


def write_metadata_lines(folder: pathlib.Path) -> pathlib.Path:
    """Write Hugging Face's `imagefolder` with `metadata.jsonl`."""
    write_images(folder / "train")
    lines = [
        json.dumps({"file_name": f"train/{name}", "text": texts})
        for name, texts in zip(NAMES, TEXTS, strict=True)
    ]
    (folder / "metadata.jsonl").write_text("\n".join(lines))
    return folder


def write_metadata_csv(folder: pathlib.Path) -> pathlib.Path:
    """Write Hugging Face's `imagefolder` with `metadata.csv`."""
    write_images(folder)
    with (folder / "metadata.csv").open("w", newline="") as file:
        csv.writer(file).writerows([("file_name", "text"), *rows()])
    return folder


def image_structs() -> list[dict]:
    """Return the photos as Hugging Face stores them."""
    return [
        {"bytes": data, "path": name} for name, data in zip(NAMES, IMAGES, strict=True)
    ]


def write_parquet(folder: pathlib.Path) -> pathlib.Path:
    """Write two Parquet files as the hub does: `data/train-00000-of-00002.parquet`."""
    (folder / "data").mkdir(parents=True)
    table = pa.table({"image": image_structs(), "caption": TEXTS})
    for number, part in enumerate((table.slice(0, 3), table.slice(3))):
        name = f"train-{number:05d}-of-00002.parquet"
        pq.write_table(part, folder / "data" / name, row_group_size=2)
    return folder


def write_parquet_binary(folder: pathlib.Path) -> pathlib.Path:
    """Write a Parquet file with plain bytes, an image id, and a row per caption."""
    folder.mkdir()
    numbers = [n for n, texts in enumerate(TEXTS) for _ in texts]
    table = pa.table(
        {
            "jpg": pa.array([IMAGES[n] for n in numbers], pa.binary()),
            "image_id": numbers,
            "sentence": [text for _, text in rows()],
        }
    )
    pq.write_table(table, folder / "photos.parquet")
    return folder / "photos.parquet"


def write_parquet_names(folder: pathlib.Path) -> pathlib.Path:
    """Write a Parquet file with names of image files and numbered captions."""
    write_images(folder / "images")
    columns = {f"caption_{k}": [texts[k] for texts in TEXTS] for k in range(2)}
    pq.write_table(pa.table({"filename": NAMES, **columns}), folder / "x.parquet")
    return folder


def write_tars(folder: pathlib.Path) -> pathlib.Path:
    """Write img2dataset's tars, with the tables beside them."""
    folder.mkdir()
    for shard, numbers in enumerate((range(3), range(3, COUNT))):
        members = {}
        for n in numbers:
            members[f"{n:04d}.png"] = IMAGES[n]
            members[f"{n:04d}.json"] = json.dumps({"captions": TEXTS[n]}).encode()
        write_tar(folder / f"{shard:05d}.tar", members)
        table = pa.table({"url": ["x"], "caption": ["y"], "status": ["success"]})
        pq.write_table(table, folder / f"{shard:05d}.parquet")
        (folder / f"{shard:05d}_stats.json").write_text('{"successes": 3}')
    return folder


def write_cc12m(folder: pathlib.Path) -> pathlib.Path:
    """Write CC12M's list, with a dead URL, and images called by the ends of URLs."""
    write_images(folder / "images")
    lines = [
        f"http://example.com/a/{name}?size=1\t{caption}\n"
        for name, caption in [*rows(), ("dead.png", "gone")]
    ]
    (folder / "cc12m.tsv").write_text("".join(lines))
    return folder


def write_sbu(folder: pathlib.Path) -> pathlib.Path:
    """Write SBU's parallel lists."""
    write_images(folder / "images")
    content = {
        "image_urls": [f"http://static.example.com/2723/{name}" for name, _ in rows()],
        "captions": [caption for _, caption in rows()],
        "user_ids": ["x" for _ in rows()],
    }
    (folder / "sbu-captions-all.json").write_text(json.dumps(content))
    return folder


def write_visual_genome_images(folder: pathlib.Path) -> None:
    """Write the images as Visual Genome does: two folders, called by their ids."""
    for number, data in enumerate(IMAGES):
        path = folder / "images" / ("VG_100K", "VG_100K_2")[number % 2]
        path.mkdir(parents=True, exist_ok=True)
        (path / f"{number + 1}.jpg").write_bytes(data)


def write_visual_genome(folder: pathlib.Path) -> pathlib.Path:
    """Write Visual Genome's regions."""
    write_visual_genome_images(folder)
    content = [
        {
            "id": number + 1,
            "regions": [
                {"region_id": k, "image_id": number + 1, "x": 0, "y": 0, "phrase": text}
                for k, text in enumerate(texts)
            ],
        }
        for number, texts in enumerate(TEXTS)
    ]
    (folder / "region_descriptions.json").write_text(json.dumps(content))
    return folder


def write_visual_genome_of_lavis(folder: pathlib.Path) -> pathlib.Path:
    """Write LAVIS' `vg_caption.json`, with the paths of its authors."""
    write_visual_genome_images(folder)
    content = [
        {
            "image": f"/export/vg/image/{number + 1}.jpg",
            "caption": text,
            "image_id": f"vg_{number + 1}",
            "dataset": "vg",
        }
        for number, texts in enumerate(TEXTS)
        for text in texts
    ]
    (folder / "annotations").mkdir()
    (folder / "annotations" / "vg_caption.json").write_text(json.dumps(content))
    return folder / "annotations" / "vg_caption.json"


def write_prepared(folder: pathlib.Path, format_: str = "arrayrecord") -> pathlib.Path:
    """Write two shards by `prepare`."""
    write_csv(folder / "raw")
    spec = {
        "kind": "csv",
        "path": str(folder / "raw" / "captions.txt"),
        "images": str(folder / "raw" / "Images"),
    }
    options = PrepareOptions(format_, shard_size=3)
    job = PrepareJob(spec, folder / "prepared", options)
    run_shards(job)
    write_manifest(job)
    return folder / "prepared"


def write_prepared_tars(folder: pathlib.Path) -> pathlib.Path:
    """Write two tars by `prepare`."""
    return write_prepared(folder, "tars")


def write_saved_dataset(folder: pathlib.Path) -> pathlib.Path:
    """Write a data set by `datasets.Dataset.save_to_disk`."""
    import datasets

    features = datasets.Features(
        {
            "image": datasets.Image(),
            "caption": datasets.List(datasets.Value("string")),
        }
    )
    columns = {"image": image_structs(), "caption": TEXTS}
    data = datasets.Dataset.from_dict(columns, features=features)
    splits = datasets.DatasetDict({"train": data, "test": data.select([0])})
    splits.save_to_disk(folder, num_shards={"train": 2, "test": 1})
    return folder


# Writers by the title that detection gives the layout.
WRITERS: dict[str, tuple[str, Callable[[pathlib.Path], pathlib.Path]]] = {
    "csv": ("CSV", write_csv),
    "tsv": ("CSV", write_tsv),
    "flickr30k": ("CSV", write_flickr30k),
    "json_lists": ("JSON objects", write_json_lists),
    "json_lines": ("JSON objects", write_json_lines),
    "lavis": ("JSON objects", write_lavis),
    "captions_by_file": ("captions by file", write_caption_by_file),
    "coco": ("COCO", write_coco),
    "karpathy": ("Karpathy", write_karpathy),
    "text_files": ("images with .txt files", write_text_files),
    "metadata_jsonl": ("imagefolder with metadata.jsonl", write_metadata_lines),
    "metadata_csv": ("imagefolder with metadata.csv", write_metadata_csv),
    "parquet": ("Parquet", write_parquet),
    "parquet_binary": ("Parquet", write_parquet_binary),
    "parquet_names": ("Parquet", write_parquet_names),
    "tars": ("tars", write_tars),
    "cc12m": ("list of URLs", write_cc12m),
    "sbu": ("list of URLs", write_sbu),
    "visual_genome": ("Visual Genome", write_visual_genome),
    "visual_genome_of_lavis": ("Visual Genome", write_visual_genome_of_lavis),
    "array_record": ("ArrayRecord", write_prepared),
    "prepared_tars": ("tars", write_prepared_tars),
    "saved_dataset": ("data set on disk", write_saved_dataset),
}
