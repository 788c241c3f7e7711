"""Sizes of the parts of a model, as frozen dataclasses that check their fields."""

from __future__ import annotations

import dataclasses
import math
import numbers
from typing import Any, ClassVar

# Keys of `nn.layers.ACTIVATIONS`, repeated because importing those takes seconds.
ACTIVATIONS = ("gelu", "gelu_new", "quick_gelu", "relu", "silu")
# Mean and deviation of RGB in [0, 1] that image encoders normalise with: CLIP's
# training images (Radford et al. 2021), those of ImageNet, and the range itself.
IMAGE_STATISTICS = {
    "clip": (
        (0.48145466, 0.4578275, 0.40821073),
        (0.26862954, 0.26130258, 0.27577711),
    ),
    "imagenet": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
}
CHOICES = {
    "activation": ACTIVATIONS,
    "statistics": tuple(IMAGE_STATISTICS),
    "join": ("concatenate", "average"),
}
# Largest values of sizes that take time or memory before any weights are read.
LIMITS = {"depth": 1000, "decoder_depth": 1000, "image_size": 2**14}
MAX_SIZE = 2**31 - 1
COUNTS = ("num_registers",)  # may be 0


def later(default: Any) -> Any:
    """Return a field that earlier versions lack; files hold it only if it is set."""
    return dataclasses.field(default=default, metadata={"later": True})


class Sizes:
    """Base of all sizes of a part; checks the fields when they are set."""

    def __post_init__(self) -> None:
        """Check types and ranges of all fields.

        Raises:
          ValueError: a field is impossible; the message names it and its value.
        """
        for field in dataclasses.fields(self):  # type: ignore[arg-type]
            value = getattr(self, field.name)
            expected = _expected(field.name, str(field.type), value)
            if expected:
                raise ValueError(f"{field.name} is {value!r}; it must be {expected}")
        width, heads = getattr(self, "width", 0), getattr(self, "heads", 1)
        if not hasattr(self, "head_width") and width % heads:
            raise ValueError(f"width {width} is no multiple of heads {heads}")

    def extensions(self) -> dict[str, Any]:
        """Return the fields that earlier versions lack, if they are set."""
        return {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)  # type: ignore[arg-type]
            if "later" in field.metadata and getattr(self, field.name) != field.default
        }

    def stored_fields(self) -> dict[str, Any]:
        """Return the fields for a file, so that files of earlier versions are equal."""
        fields = dataclasses.fields(self)  # type: ignore[arg-type]
        known = [field.name for field in fields if "later" not in field.metadata]
        return {name: getattr(self, name) for name in known} | self.extensions()


def _expected(name: str, annotation: str, value: Any) -> str:
    """Describe what a field must be; "" if its value is possible."""
    kind, _, optional = annotation.partition(" | ")
    if optional and value is None:
        return ""
    if kind == "int":
        may_be_zero = name.endswith("_id") or name in COUNTS
        low, high = int(not may_be_zero), LIMITS.get(name, MAX_SIZE)
        is_int = isinstance(value, numbers.Integral) and not isinstance(value, bool)
        is_possible = is_int and low <= value <= high
        return "" if is_possible else f"an integer from {low} to {high}"
    if kind == "float":
        is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
        return "" if is_number and 0 <= value < math.inf else "a number from 0 on"
    if name in CHOICES:
        choices = CHOICES[name]
        return "" if value in choices else f"one of {', '.join(choices)}"
    if kind == "bool":
        return "" if isinstance(value, bool) else "true or false"
    return ""


@dataclasses.dataclass(frozen=True)
class ViTConfig(Sizes):
    """Sizes of a frozen vision transformer; all tokens of its last block are output.

    The order of the tokens is class token, registers, patches.
    """

    width: int
    depth: int
    heads: int
    mlp_dim: int
    image_size: int = 224
    patch_size: int = 14
    activation: str = "gelu"  # "gelu" is exact; see ACTIVATIONS
    layer_norm_eps: float = 1e-6
    key_bias: bool = False  # EVA-CLIP has q and v bias but no k bias
    patch_bias: bool = True
    pre_norm: bool = False  # CLIP normalises before the first block
    class_token: bool = later(True)  # SigLIP has none
    num_registers: int = later(0)  # tokens without positions (Darcet et al. 2024)
    layer_scale: bool = later(False)  # of the output of every branch (DINOv2)
    gated_mlp: bool = later(False)  # SwiGLU with activation "silu" (DINOv2's giant)
    # BLIP-2 uses EVA-CLIP and CLIP up to the last block but one, without a norm. SigLIP
    # and DINOv2 are used with all blocks and their final norm.
    final_norm: bool = later(False)
    statistics: str = later("clip")  # key of IMAGE_STATISTICS

    def __post_init__(self) -> None:
        """Check the fields; see `Sizes`."""
        super().__post_init__()
        if self.patch_size > self.image_size:
            raise ValueError(
                f"patch_size {self.patch_size} exceeds image_size {self.image_size}"
            )

    @property
    def num_patches(self) -> int:
        """Number of patches of an image."""
        return (self.image_size // self.patch_size) ** 2

    @property
    def num_positions(self) -> int:
        """Number of tokens with a position embedding: patches and class token."""
        return self.num_patches + self.class_token

    @property
    def num_tokens(self) -> int:
        """Number of patches, registers and class token."""
        return self.num_positions + self.num_registers

    @property
    def family(self) -> str:
        """Return the name of the encoders that have these parameters."""
        if self.pre_norm:
            return "CLIP"
        if self.layer_scale:
            return "DINOv2"
        return "EVA-CLIP" if self.class_token else "SigLIP"

    @property
    def interpolation(self) -> str:
        """Return how position embeddings are fitted to another image size.

        A key of `convert.positions.WEIGHTS`, as in the code of each family: CLIP aligns
        the corners, DINOv2 with registers the centres with an antialiasing filter, all
        others the centres.
        """
        if self.pre_norm:
            return "corners"
        return "antialias" if self.num_registers else "centres"


@dataclasses.dataclass(frozen=True)
class FeaturesConfig(Sizes):
    """Sizes of precomputed image features that replace a vision tower."""

    num_tokens: int
    width: int

    @property
    def num_patches(self) -> int:
        """Number of tokens of the largest square; those before it are no patches."""
        return math.isqrt(self.num_tokens) ** 2


@dataclasses.dataclass(frozen=True)
class QFormerConfig(Sizes):
    """BERT-base with cross-attention in blocks 0, 2, 4, ... (paper section 3.1)."""

    width: int = 768
    depth: int = 12
    heads: int = 12
    mlp_dim: int = 3072
    cross_attention_every: int = 2
    num_queries: int = 32
    vocab_size: int = 30523  # BERT's 30522 and [DEC]
    max_positions: int = 512
    projection_dim: int = 256  # the width of the ITC space
    layer_norm_eps: float = 1e-12
    dropout: float = 0.1
    # Deviation of new matrices, including the projections of its outputs. BERT's value
    # suits width 768; a narrow Q-Former starts to use the image early only with about
    # width**-0.5.
    initial_std: float = 0.02
    activation: str = "gelu"  # of both feed-forward networks and of the head


@dataclasses.dataclass(frozen=True)
class ProjectorConfig(Sizes):
    """Sizes of a projector, which replaces the Q-Former in an ablation of stage 2.

    The patches are split into `num_tokens` cells of equal size; a cell at the edge may
    have fewer patches.
    """

    num_tokens: int  # visual tokens, a square number
    join: str = "concatenate"  # patches of a cell: "concatenate" or "average"
    hidden_width: int = 768  # "average": of the MLP; "concatenate" has no MLP

    def __post_init__(self) -> None:
        """Check the fields; see `Sizes`."""
        super().__post_init__()
        if math.isqrt(self.num_tokens) ** 2 != self.num_tokens:
            raise ValueError(
                f"num_tokens is {self.num_tokens}; a projector needs a square number"
            )

    def split(self, num_patches: int) -> tuple[int, int]:
        """Return the cells in a row and the patches in a row of a cell.

        Raises:
          ValueError: the patches cannot be split so that every cell has one.
        """
        grid, side = math.isqrt(num_patches), math.isqrt(self.num_tokens)
        cell = -(-grid // side)
        if (side - 1) * cell >= grid:
            raise ValueError(
                f"{grid} x {grid} patches cannot be split into {side} x {side} cells "
                f"of {cell} x {cell}: cells would be empty"
            )
        return side, cell

    def output_width(self, num_patches: int, width: int) -> int:
        """Return the width of the vectors of the cells, from that of the patches."""
        if self.join == "average":
            return self.hidden_width
        return self.split(num_patches)[1] ** 2 * width


class LanguageSizes(Sizes):
    """Base of the sizes of a language model: what code for every family asks.

    Attributes:
      family: key of the family: its kind in configurations, its module, its names.
      title: name of the family in messages.
      is_encoder_decoder: an encoder reads queries and prompt, a decoder writes; False:
        one stack does both.
      scales_scores: attention divides its scores by the square root of the head width.
    """

    family: ClassVar[str]
    title: ClassVar[str]
    is_encoder_decoder: ClassVar[bool] = False
    scales_scores: ClassVar[bool] = True

    @property
    def position_limit(self) -> int | None:
        """Largest number of positions; None = no limit."""
        return None

    @property
    def start_id(self) -> int | None:
        """Token that every generated text begins with; None = none."""
        return None

    @property
    def end_id(self) -> int | None:
        """Token that ends a text; None = whatever the tokenizer says."""
        return None


@dataclasses.dataclass(frozen=True)
class OPTConfig(LanguageSizes):
    """Sizes of a decoder-only language model of the OPT family."""

    family: ClassVar[str] = "opt"
    title: ClassVar[str] = "OPT"

    width: int
    depth: int
    heads: int
    mlp_dim: int
    vocab_size: int = 50272
    max_positions: int = 2048
    embed_width: int | None = None  # OPT-350m embeds in 512 and projects to 1024
    pre_norm: bool = True  # OPT-350m is post-norm, without a final norm
    dropout: float = 0.1
    pad_id: int = 1
    bos_id: int = 2
    tied_head: bool = True  # the head is the token table, as in all released sizes

    @property
    def embedding_width(self) -> int:
        """Width of the input embeddings, and so of the projected queries."""
        return self.embed_width or self.width

    @property
    def position_limit(self) -> int:
        """Number of positions in the table."""
        return self.max_positions

    @property
    def start_id(self) -> int:
        """BOS."""
        return self.bos_id


@dataclasses.dataclass(frozen=True)
class T5Config(LanguageSizes):
    """Sizes of an encoder-decoder language model of the T5-v1.1 / FlanT5 family."""

    family: ClassVar[str] = "t5"
    title: ClassVar[str] = "T5"
    is_encoder_decoder: ClassVar[bool] = True
    scales_scores: ClassVar[bool] = False

    width: int
    depth: int
    heads: int
    mlp_dim: int
    head_width: int = 64
    decoder_depth: int | None = None  # None = `depth`
    vocab_size: int = 32128
    activation: str = "gelu"  # the original forces exact GELU; "gelu_new" is T5's
    relative_buckets: int = 32
    relative_max_distance: int = 128
    layer_norm_eps: float = 1e-6
    dropout: float = 0.1
    pad_id: int = 0
    eos_id: int = 1
    decoder_start_id: int = 0

    def __post_init__(self) -> None:
        """Check the fields; see `Sizes`."""
        super().__post_init__()
        if self.relative_buckets < 4:
            raise ValueError(
                f"relative_buckets is {self.relative_buckets}; it must be 4 or more, "
                "because the encoder gives half of them to each direction"
            )
        if self.relative_max_distance <= self.relative_buckets // 2:
            raise ValueError(
                f"relative_max_distance is {self.relative_max_distance}; it must "
                f"exceed half of the {self.relative_buckets} relative_buckets"
            )

    @property
    def embedding_width(self) -> int:
        """Width of the input embeddings, and so of the projected queries."""
        return self.width

    @property
    def start_id(self) -> int:
        """Token that the decoder starts with."""
        return self.decoder_start_id


ROPE_SCALINGS = ("none", "linear", "dynamic", "llama3", "yarn", "longrope")


@dataclasses.dataclass(frozen=True)
class LlamaConfig(LanguageSizes):
    """Sizes of a decoder-only language model of the Llama family.

    Llama 2 and 3, Vicuna, Mistral, Qwen2, Qwen3, Granite, SmolLM2 and others that have
    the same blocks. The defaults are Llama 2's.
    """

    family: ClassVar[str] = "llama"
    title: ClassVar[str] = "Llama"

    width: int
    depth: int
    heads: int
    kv_heads: int  # heads of keys and values, each for heads / kv_heads of queries
    head_width: int
    mlp_dim: int
    vocab_size: int = 32000
    max_positions: int = 4096
    layer_norm_eps: float = 1e-5
    rope_theta: float = 10_000.0
    rope_scaling: str = "none"  # one of ROPE_SCALINGS, of the rotary frequencies
    rope_factor: float = 1.0  # by which positions are more than the original ones
    rope_low_factor: float = 1.0  # turns within the original positions
    rope_high_factor: float = 4.0
    rope_original_positions: int = 8192  # "llama3", "yarn", "longrope"
    qkv_bias: bool = False
    output_bias: bool = False
    mlp_bias: bool = False
    query_key_norm: bool = False  # RMS norm of every head's queries and keys (Qwen3)
    tied_head: bool = False
    embedding_scale: float = 1.0  # this and the next three: Granite
    attention_scale: float | None = None  # None = head_width ** -0.5
    residual_scale: float = 1.0
    logits_divisor: float = 1.0
    pad_id: int = 2
    bos_id: int | None = 1  # None = texts have no first token
    eos_id: int = 2  # ends a text
    rope_attention_factor: float = later(1.0)  # "yarn", "longrope": of cosine and sine
    rope_truncate: bool = later(True)  # "yarn": round to whole pairs of dimensions
    # "longrope": divisors of each frequency, within the original positions and beyond.
    rope_short_factors: tuple[float, ...] = later(())
    rope_long_factors: tuple[float, ...] = later(())

    def __post_init__(self) -> None:
        """Check the fields; see `Sizes`."""
        super().__post_init__()
        if self.heads % self.kv_heads:
            raise ValueError(
                f"heads {self.heads} is no multiple of kv_heads {self.kv_heads}"
            )
        if self.rotary_width % 2:
            raise ValueError(
                f"{self.rotary_width} of head_width {self.head_width} dimensions are "
                "rotated; their number must be even"
            )
        if self.rope_scaling not in ROPE_SCALINGS:
            raise ValueError(
                f"rope_scaling is {self.rope_scaling!r}; it must be one of "
                f"{', '.join(ROPE_SCALINGS)}"
            )
        self._set_long_factors()
        if self.rope_high_factor <= self.rope_low_factor:
            raise ValueError(
                f"rope_high_factor is {self.rope_high_factor}; it must exceed "
                f"rope_low_factor {self.rope_low_factor}"
            )
        for name in ("rope_theta", "rope_factor", "logits_divisor"):
            if not getattr(self, name):
                raise ValueError(f"{name} is 0; it must be above 0")

    @property
    def embedding_width(self) -> int:
        """Width of the input embeddings, and so of the projected queries."""
        return self.width

    def _set_long_factors(self) -> None:
        """Convert the divisors of "longrope", which are lists in files; check them."""
        for name in ("rope_short_factors", "rope_long_factors"):
            values = tuple(getattr(self, name))
            object.__setattr__(self, name, values)
            needed = self.rotary_width // 2 if self.rope_scaling == "longrope" else 0
            if len(values) != needed or not all(value > 0 for value in values):
                raise ValueError(
                    f"{name} holds {values}; rope_scaling {self.rope_scaling!r} needs "
                    f"{needed} numbers above 0"
                )

    @property
    def rotary_width(self) -> int:
        """Dimensions of a head that are rotated."""
        return self.head_width

    @property
    def position_limit(self) -> int:
        """Number of positions within which the rotation depends on no text's length.

        Beyond them the frequencies of "dynamic" and "longrope" change with the length
        of the longest text of a batch, and all keys in a cache with them.
        """
        if self.rope_scaling == "longrope":
            return min(self.max_positions, self.rope_original_positions)
        return self.max_positions

    @property
    def start_id(self) -> int | None:
        """BOS, if texts have one."""
        return self.bos_id

    @property
    def end_id(self) -> int:
        """EOS."""
        return self.eos_id


@dataclasses.dataclass(frozen=True)
class Phi3Config(LlamaConfig):
    """Sizes of a decoder-only language model of the Phi-3 and Phi-4 family.

    Its checkpoints join the matrices of queries, keys and values, and those of the
    gated feed-forward. Only a part of each head may be rotated.
    """

    family: ClassVar[str] = "phi3"
    title: ClassVar[str] = "Phi-3"

    rotary_share: float = 1.0  # of the dimensions of a head

    @property
    def rotary_width(self) -> int:
        """Dimensions of a head that are rotated."""
        return int(self.head_width * self.rotary_share)


LanguageModelConfig = OPTConfig | T5Config | LlamaConfig
