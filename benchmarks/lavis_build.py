"""The authors' models, built from their checkout in the benchmarks' sizes.

Their constructors download weights and vocabularies: these parts are replaced by
modules of the benchmarks' sizes and a tokenizer of texts that are written as numbers.
"""

from __future__ import annotations

import importlib
import importlib.util
import pathlib
import sys
import types
from importlib import machinery
from typing import Any

import torch

from benchmarks import shared_inputs

# What the checkout imports and what no benchmark calls, where it is not installed.
UNUSED = (
    "fairscale.nn.checkpoint.checkpoint_activations",
    "pandas",
    "cv2",
    "decord",
    "iopath.common.download",
    "iopath.common.file_io",
)
PACKAGES = (
    "lavis",
    "lavis.models",
    "lavis.models.blip2_models",
    "lavis.models.blip_models",
    "lavis.processors",
)
REGISTERED = {"lavis.models": "BaseModel", "lavis.processors": "BaseProcessor"}
KEPT: list[Any] = []  # what must live as long as the process


def load(checkout: str, module: str) -> Any:
    """Import a module of the checkout without the other imports of its packages."""
    if not (pathlib.Path(checkout) / "lavis").is_dir():
        raise SystemExit(
            f"--lavis={checkout} is not a checkout: it has no folder lavis"
        )
    for name in PACKAGES:
        package = types.ModuleType(name)
        package.__path__ = [str(pathlib.Path(checkout, *name.split(".")))]
        sys.modules.setdefault(name, package)
    declare_operators()
    absent = [
        name for name in UNUSED if importlib.util.find_spec(name.split(".")[0]) is None
    ]
    for name in absent:
        stand_in(name)
    for where, base in REGISTERED.items():  # their registry asks for these
        inside = importlib.import_module(f"{where}.base_{base.lower()[4:]}")
        setattr(sys.modules[where], base, getattr(inside, base))
    return importlib.import_module(module)


def declare_operators() -> None:
    """Make torchvision importable if its compiled part does not match torch.

    The transforms of PIL images do not need the compiled part.
    """
    try:
        import torchvision  # noqa: F401
    except RuntimeError:
        library = torch.library.Library("torchvision", "FRAGMENT")
        for name in ("nms", "qnms"):
            library.define(f"{name}(Tensor boxes, Tensor scores, float most) -> Tensor")
        KEPT.append(library)


def stand_in(name: str) -> None:
    """Register a module, and its parents, from which any name can be imported."""
    parts = name.split(".")
    for end in range(1, len(parts) + 1):
        module = types.ModuleType(".".join(parts[:end]))
        module.__path__ = []
        module.__spec__ = machinery.ModuleSpec(module.__name__, None)
        vars(module)["__getattr__"] = lambda name: None
        sys.modules.setdefault(module.__name__, module)


class Numbers:
    """A tokenizer of texts that are written as token ids: "2 17 305"."""

    def __init__(self, vocabulary: int, bos: int, pad: int, newline: int = 0):
        self.bos_token_id, self.pad_token_id = bos, pad
        self._vocabulary, self._newline = vocabulary, newline

    def __len__(self) -> int:
        return self._vocabulary

    def __call__(self, texts: Any, **_: Any) -> Any:
        """Return ids and mask, padded on the right."""
        from transformers import BatchEncoding

        if texts == "\n":
            return BatchEncoding({"input_ids": [self._newline]})
        rows = [
            [int(n) for n in text.split()]
            for text in ([texts] if isinstance(texts, str) else texts)
        ]
        longest = max(map(len, rows))
        ids = torch.full((len(rows), longest), self.pad_token_id)
        for id_row, row in zip(ids, rows, strict=True):
            id_row[: len(row)] = torch.tensor(row, dtype=torch.long)
        mask = (ids != self.pad_token_id).long()
        return BatchEncoding({"input_ids": ids, "attention_mask": mask})

    def batch_decode(self, rows: Any, **_: Any) -> list[str]:
        """Return the texts of ids."""
        return [" ".join(map(str, row.tolist())) for row in rows]


class Features(torch.nn.Module):
    """Replaces the image tower when the input is features."""

    def __init__(self, width: int):
        super().__init__()
        self.num_features = width

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Return the features."""
        return x

    def get_num_layer(self, name: str = "") -> int:
        """Return the number of layers, as the image towers do."""
        return 0


def texts(ids: Any) -> list[str]:
    """Write ids as texts that `Numbers` reads."""
    return [" ".join(map(str, row)) for row in ids.tolist()]


def build(lavis: str, sizes: dict[str, Any], dropout: float) -> Any:
    """Build one of the checkout's models in these sizes, with the shared weights."""
    language = sizes["language_model"]
    kind = language["kind"] if language else "qformer"
    module = load(lavis, f"lavis.models.blip2_models.blip2_{kind}")
    base = sys.modules["lavis.models.blip2_models.blip2"]
    prepare_towers(base, sizes, dropout)
    options: dict[str, Any] = {
        "num_query_token": sizes["qformer"]["num_queries"],
        "vit_precision": "fp32",
    }
    if kind == "qformer":
        options["embed_dim"] = sizes["qformer"]["projection_dim"]
        model = module.Blip2Qformer(**options)
    elif kind == "opt":
        model = build_opt(module, language, dropout, options)
    else:
        model = build_t5(module, language, dropout, options)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            array = shared_inputs.weight(name, parameter.shape)
            parameter.data = torch.from_numpy(array).reshape(parameter.shape)
        if hasattr(model.visual_encoder, "train"):
            model.train()
    return model


def prepare_towers(base: Any, sizes: dict[str, Any], dropout: float) -> None:
    """Replace the downloads by a new image tower and a new BERT of these sizes."""
    from transformers import BertConfig

    vision, qformer = sizes["vision"], sizes["qformer"]
    bert, towers = base.BertLMHeadModel, sys.modules["lavis.models.eva_vit"]
    configured = BertConfig(
        vocab_size=qformer["vocab_size"] - 1,
        hidden_size=qformer["width"],
        num_hidden_layers=qformer["depth"],
        num_attention_heads=qformer["heads"],
        intermediate_size=qformer["mlp_dim"],
        hidden_dropout_prob=dropout,
        attention_probs_dropout_prob=dropout,
        max_position_embeddings=qformer["max_positions"],
    )
    base.BertConfig = types.SimpleNamespace(from_pretrained=lambda name: configured)
    base.BertLMHeadModel = types.SimpleNamespace(
        from_pretrained=lambda name, config: bert(config)
    )
    numbers = Numbers(qformer["vocab_size"], qformer["vocab_size"] - 1, 0)
    base.Blip2Base.init_tokenizer = classmethod(lambda kind, *_, **__: numbers)

    def tower(*_: Any) -> torch.nn.Module:
        if vision["kind"] == "features":
            return Features(vision["width"])
        return towers.VisionTransformer(
            img_size=vision["image_size"],
            patch_size=vision["patch_size"],
            embed_dim=vision["width"],
            depth=vision["depth"],
            num_heads=vision["heads"],
            qkv_bias=True,
            use_mean_pooling=False,
            mlp_ratio=vision["mlp_dim"] / vision["width"],
            norm_layer=lambda width: torch.nn.LayerNorm(width, eps=1e-6),
        )

    base.create_eva_vit_g = tower


def build_opt(module: Any, sizes: Any, dropout: float, options: Any) -> Any:
    """Build `Blip2OPT` with its language model in fp32."""
    import transformers

    config = transformers.OPTConfig(
        vocab_size=sizes["vocab_size"],
        hidden_size=sizes["width"],
        num_hidden_layers=sizes["depth"],
        num_attention_heads=sizes["heads"],
        ffn_dim=sizes["mlp_dim"],
        word_embed_proj_dim=sizes["width"],
        max_position_embeddings=sizes["max_positions"],
        dropout=dropout,
    )
    fresh = lambda *_, **__: transformers.OPTForCausalLM(config)
    module.OPTForCausalLM = types.SimpleNamespace(from_pretrained=fresh)
    numbers = Numbers(sizes["vocab_size"], 2, 1, newline=sizes["vocab_size"] - 1)
    module.AutoTokenizer = types.SimpleNamespace(
        from_pretrained=lambda *_, **__: numbers
    )
    return module.Blip2OPT(**options)


def build_t5(module: Any, sizes: Any, dropout: float, options: Any) -> Any:
    """Build `Blip2T5` with its language model in fp32."""
    config = module.T5Config(
        vocab_size=sizes["vocab_size"],
        d_model=sizes["width"],
        num_layers=sizes["depth"],
        num_heads=sizes["heads"],
        d_ff=sizes["mlp_dim"],
        d_kv=sizes["head_width"],
        dropout_rate=dropout,
        tie_word_embeddings=False,
        feed_forward_proj="gated-gelu",
        decoder_start_token_id=0,
    )
    model = module.T5ForConditionalGeneration
    module.T5Config = types.SimpleNamespace(from_pretrained=lambda name: config)
    module.T5ForConditionalGeneration = types.SimpleNamespace(
        from_pretrained=lambda name, config: model(config)
    )
    numbers = Numbers(sizes["vocab_size"], 0, 0)
    module.T5TokenizerFast = types.SimpleNamespace(from_pretrained=lambda name: numbers)
    return module.Blip2T5(**options)


def channels_first(images: Any) -> torch.Tensor:
    """Return images [B, R, R, 3] with channels first, and features unchanged."""
    tensor = torch.from_numpy(images)
    return tensor.permute(0, 3, 1, 2).contiguous() if tensor.ndim == 4 else tensor


def image_shape(vision: dict[str, Any]) -> tuple[int, ...]:
    """Return the shape of one image or of its features."""
    if vision["kind"] == "features":
        return vision["num_tokens"], vision["width"]
    return vision["image_size"], vision["image_size"], 3
