"""Small tokenizers with chat templates: byte-level BPE and ChatML, SentencePiece."""

import io
import json

from transformers import PreTrainedTokenizerFast

from blip2_jax.data.text.bpe import train_byte_level_bpe

TEXTS = [
    "what is in the picture? two dogs on the grass",
    "a photo of a red ball and a small dog",
    "user assistant system You are a helpful assistant.",
]
CHATML = (
    "{% for m in messages %}"
    "{{ '<|im_start|>' + m['role'] + '\\n' + m['content'] + '<|im_end|>' + '\\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\\n' }}{% endif %}"
)
# As Llama 2 and Mistral: BOS and spaces are the template's own.
INST = (
    "{{ bos_token }}{% for m in messages %}"
    "{% if m['role'] == 'user' %}{{ '[INST] ' + m['content'] + ' [/INST]' }}"
    "{% else %}{{ ' ' + m['content'] + eos_token }}{% endif %}{% endfor %}"
)


def write_chatml(folder, template=CHATML, in_config=False, **more):
    """Write a byte-level BPE with ChatML's tokens; `</s>` ends a document.

    Args:
      folder: to write.
      template: the chat template; None for none.
      in_config: keep the template in tokenizer_config.json, as older folders do.
      **more: further settings of tokenizer_config.json.
    """
    backend = train_byte_level_bpe(TEXTS, 320)
    backend.post_processor = None
    backend.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=backend,
        eos_token="</s>",
        pad_token="<pad>",
        chat_template=None if in_config else template,
    )
    tokenizer.save_pretrained(folder)
    if in_config:
        more["chat_template"] = template
    change_config(folder, **more)
    return str(folder)


def change_config(folder, **settings):
    """Change settings of a tokenizer_config.json."""
    file = folder / "tokenizer_config.json"
    known = json.loads(file.read_text()) if file.exists() else {}
    file.write_text(json.dumps(known | settings))


def write_sentencepiece(folder, **settings):
    """Write a folder in Llama 2's style: tokenizer.model and no tokenizer.json.

    Returns:
      The SentencePiece model.
    """
    import sentencepiece

    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXTS * 20),
        model_writer=model,
        vocab_size=300,
        model_type="bpe",
        byte_fallback=True,
        character_coverage=1.0,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        minloglevel=2,
    )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    (folder / "config.json").write_text(json.dumps({"model_type": "llama"}))
    change_config(folder, tokenizer_class="LlamaTokenizer", **settings)
    return sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
