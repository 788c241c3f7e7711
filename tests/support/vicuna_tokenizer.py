"""A small tokenizer of the class of Llama and Vicuna: bytes, letters, a few merges."""

import string

SPACE = "\u2581"
BYTES = [f"<0x{number:02X}>" for number in range(256)]
MERGES = [
    ("a", "r"),
    ("e", "d"),
    (SPACE, "s"),
    (f"{SPACE}s", "t"),
    (f"{SPACE}st", "ar"),
]
TOKENS = ["<unk>", "<s>", "</s>", *BYTES, SPACE, *string.ascii_lowercase]
ROWS = len(TOKENS) + len(MERGES)


def write_tokenizer(folder, *, instructed=False, image=False):
    """Write the tokenizer's files.

    Args:
      folder: where to write.
      instructed: with the tokens of InstructBLIP: texts begin with </s>, and there is
        [PAD], which has another row.
      image: with <image> after all others, as processors of transformers 5 add it.
    """
    from transformers import LlamaTokenizerFast

    words = [*TOKENS, *("".join(pair) for pair in MERGES)]
    tokens = {"bos_token": "</s>", "unk_token": "</s>"} if instructed else {}
    tokenizer = LlamaTokenizerFast(
        vocab={word: number for number, word in enumerate(words)},
        merges=MERGES,
        add_bos_token=True,
        **tokens,
    )
    if instructed:
        tokenizer.add_special_tokens({"pad_token": "[PAD]"})
    if image:
        tokenizer.add_tokens(["<image>"], special_tokens=True)
    tokenizer.save_pretrained(folder)
    return str(folder)
