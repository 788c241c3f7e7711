"""Compare texts with transformers: `python -m benchmarks.exported --model RUN`.

Exports a stage-2 run of the shapes world (`make demo` leaves two) as a Hugging Face
folder, captions and answers held-out scenes with `generate` of transformers and with
ours, and counts the texts that differ. Needs torch.
"""

from __future__ import annotations

import argparse
import pathlib
import sys
import tempfile
from typing import Any

import numpy as np
from PIL import Image

EXAM_START = 10_000


def main() -> int:
    """Export, generate with both and compare."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--model", type=pathlib.Path, required=True)
    parser.add_argument("--scenes", type=int, default=100)
    options = parser.parse_args()

    import blip2_jax
    from blip2_jax.convert.huggingface_export import write_huggingface
    from blip2_jax.evaluation.shapes_exam import make_exam
    from blip2_jax.inference.load import open_model

    exam = make_exam("heldout", options.scenes, 1, start=EXAM_START)
    questions = [scene_questions[0].text for scene_questions in exam.questions]
    model = blip2_jax.load(options.model, precision="float32")
    different = 0
    with tempfile.TemporaryDirectory() as directory:
        folder = pathlib.Path(directory) / "exported"
        for line in write_huggingface(open_model(options.model), folder):
            print(line)
        theirs = Theirs(folder)
        for beams in (1, 5):
            for what, prompts in (
                ("captions", [""] * len(questions)),
                ("answers", questions),
            ):
                ours = model.generate(
                    exam.images, prompts, num_beams=beams, max_new_tokens=28
                )
                texts = theirs.generate(exam.images, prompts, beams)
                same = sum(a == b for a, b in zip(ours, texts, strict=True))
                print(f"{what}, {beams} beams: {same} of {len(ours)} the same")
                different += len(ours) - same
    return 1 if different else 0


class Theirs:
    """The exported model in transformers."""

    def __init__(self, folder: pathlib.Path) -> None:
        import transformers

        kind = transformers.Blip2ForConditionalGeneration
        self.model: Any = kind.from_pretrained(folder).eval()
        self.processor = transformers.Blip2Processor.from_pretrained(folder)

    def generate(self, images: np.ndarray, prompts: list[str], beams: int) -> list[str]:
        """Generate a text after each prompt."""
        inputs = self.processor(
            images=[Image.fromarray(image) for image in images],
            text=prompts,
            padding=True,
            return_tensors="pt",
        )
        ids = self.model.generate(**inputs, num_beams=beams, max_new_tokens=28)
        if not self.model.language_model.config.is_encoder_decoder:
            ids = ids[:, inputs["input_ids"].shape[1] :]
        texts = self.processor.batch_decode(ids, skip_special_tokens=True)
        return [text.strip() for text in texts]


if __name__ == "__main__":
    sys.exit(main())
