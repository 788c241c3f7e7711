"""Write the TFDS fixture: `python tests/support/make_tfds_fixture.py`.

Four drawn images with two captions each in the layout of TFDS' `coco_captions`. The
ArrayRecord is written from protos, because TFDS needs TensorFlow to write images. The
shard is compressed, because its blocks of 64 kB are mostly zeros.
"""

import gzip
import io
import json
import pathlib
import shutil

import numpy as np
from array_record.python.array_record_module import ArrayRecordWriter
from PIL import Image, ImageDraw
from tensorflow_datasets.core import features
from tensorflow_datasets.proto import tf_example_pb2, tf_feature_pb2

NAME, VERSION, COUNT = "tiny_captions", "1.0.0", 4
DIRECTORY = pathlib.Path(__file__).parents[1] / "data" / "fixtures" / NAME / VERSION
COLORS = ("red", "green", "blue", "yellow")


def picture(color: str) -> bytes:
    """Draw a disc as a PNG file."""
    image = Image.new("RGB", (48, 32), "white")
    ImageDraw.Draw(image).ellipse((10, 4, 34, 28), fill=color)
    file = io.BytesIO()
    image.save(file, "PNG")
    return file.getvalue()


def example(number: int) -> bytes:
    """Serialise an example."""
    color = COLORS[number]
    captions = [f"A {color} disc.", f"a round {color} thing on white"]
    integers = {"image/id": [100 + number], "captions/id": [2 * number, 2 * number + 1]}
    strings = {
        "image": [picture(color)],
        "captions/text": [caption.encode() for caption in captions],
    }
    fields = {
        name: tf_feature_pb2.Feature(int64_list=tf_feature_pb2.Int64List(value=value))
        for name, value in integers.items()
    } | {
        name: tf_feature_pb2.Feature(bytes_list=tf_feature_pb2.BytesList(value=value))
        for name, value in strings.items()
    }
    message = tf_example_pb2.Example(features=tf_feature_pb2.Features(feature=fields))
    return message.SerializeToString()


def main() -> None:
    """Write the fixture."""
    shutil.rmtree(DIRECTORY, ignore_errors=True)
    DIRECTORY.mkdir(parents=True)
    structure = features.FeaturesDict(
        {
            "image": features.Image(shape=(None, None, 3)),
            "image/id": np.int64,
            "captions": features.Sequence({"id": np.int64, "text": features.Text()}),
        }
    )
    split = {
        "name": "train",
        "shardLengths": [str(COUNT)],
        "filepathTemplate": "{DATASET}-{SPLIT}.{FILEFORMAT}-{SHARD_X_OF_Y}",
    }
    info = {
        "name": NAME,
        "version": VERSION,
        "fileFormat": "array_record",
        "splits": [split],
    }
    (DIRECTORY / "features.json").write_text(json.dumps(structure.to_json(), indent=1))
    (DIRECTORY / "dataset_info.json").write_text(json.dumps(info, indent=1))
    shard = f"{NAME}-train.array_record-00000-of-00001"
    writer = ArrayRecordWriter(str(DIRECTORY / shard), "group_size:1")
    for number in range(COUNT):
        writer.write(example(number))
    writer.close()
    content = (DIRECTORY / shard).read_bytes()
    (DIRECTORY / f"{shard}.gz").write_bytes(gzip.compress(content, mtime=0))
    (DIRECTORY / shard).unlink()


if __name__ == "__main__":
    main()
