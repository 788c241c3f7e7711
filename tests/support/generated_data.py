"""Writers of tiny data sets and vocabularies."""

import io
import json
import pathlib
import tarfile

import numpy as np
from PIL import Image
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from tests.support.goldens import GOLDENS

COLORS = ("red", "green", "blue", "yellow", "black", "white", "purple", "orange")


def picture(number: int, width: int = 40, height: int = 30) -> Image.Image:
    """Make a smooth colourful image from a number."""
    rng = np.random.default_rng(number)
    coarse = Image.fromarray(rng.integers(0, 256, (4, 5, 3), np.uint8))
    return coarse.resize((width, height), Image.Resampling.BICUBIC)


def encoded(image: Image.Image, kind: str = "PNG", **options) -> bytes:
    """Encode an image as a file."""
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


def captions(number: int) -> list[str]:
    """Return the two captions of a picture."""
    color = COLORS[number % len(COLORS)]
    return [f"A {color} thing, number {number}.", f"Something {color} ({number})"]


def write_tar(path: pathlib.Path, members: dict[str, bytes]) -> None:
    """Write a tar from its members."""
    with tarfile.open(path, "w") as tar:
        for name, data in members.items():
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))


def tar_members(numbers, first: int = 0) -> dict[str, bytes]:
    """Make members as of img2dataset: KEY.jpg, KEY.txt, KEY.json."""
    members = {}
    for number in numbers:
        key = f"{number - first:05d}"
        members[f"{key}.jpg"] = encoded(picture(number), "JPEG")
        members[f"{key}.txt"] = captions(number)[0].encode()
        members[f"{key}.json"] = json.dumps(
            {"captions": captions(number), "image_id": 1000 + number}
        ).encode()
    return members


def tars_spec(directory: pathlib.Path, count: int = 20) -> dict:
    """Write two tars of generated pictures and return the source spec."""
    half = count // 2
    write_tar(directory / "00000.tar", tar_members(range(half)))
    write_tar(directory / "00001.tar", tar_members(range(half, count), half))
    return {
        "kind": "tars",
        "paths": str(directory / "0*.tar"),
        "index_directory": str(directory / "index"),
    }


def bert_directory(directory: pathlib.Path) -> str:
    """Write a tokenizer directory with the golden models' BERT vocabulary."""
    directory.mkdir(exist_ok=True)
    words = (GOLDENS / "stage1_a" / "vocab.txt").read_text()
    (directory / "vocab.txt").write_text(words)
    config = {"tokenizer_class": "BertTokenizer", "do_lower_case": True}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return str(directory)


def language_directory(directory: pathlib.Path, golden: str) -> str:
    """Write a tokenizer directory of a golden: "stage2_opt_a" or "stage2_t5_a"."""
    words = json.loads((GOLDENS / golden / "llm_vocab.json").read_text())
    opt = "opt" in golden
    tokenizer = Tokenizer(
        models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>")
    )
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split("\n", "isolated"), pre_tokenizers.Split(" ", "removed")]
    )
    tokenizer.post_processor = processors.TemplateProcessing(
        single="</s> $A" if opt else "$A </s>",
        special_tokens=[("</s>", words.index("</s>"))],
    )
    directory.mkdir(exist_ok=True)
    tokenizer.save(str(directory / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "pad_token": "<pad>",
        "unk_token": "<unk>",
        "eos_token": "</s>",
    }
    config |= {"bos_token": "</s>"} if opt else {}
    (directory / "tokenizer_config.json").write_text(json.dumps(config))
    return str(directory)
