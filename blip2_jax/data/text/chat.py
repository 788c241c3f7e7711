"""Chat templates: prompts written as the turns that a language model was tuned on.

The template is the tokenizer's own (`chat_template.jinja`, or `chat_template` in
`tokenizer_config.json`). A prompt is the user's turn; the text that the model writes is
the assistant's. The image queries precede the template, as they precede BOS without
one.
"""

from __future__ import annotations

import dataclasses
import re
from typing import Any

PROMPT_TEMPLATES = ("plain", "chat")
# Some templates write today's date; prompts of training and inference must be equal.
FIXED_DATE = "26 Jul 2024"  # where Llama's have none
_DATE_MACRO = f"{{% macro strftime_now(format) %}}{FIXED_DATE}{{% endmacro %}}"
_CONTROL_TOKEN = re.compile(r"<\|[^<>|\s]+\|>")
_QUESTION, _ANSWER = "what is it", "a dog"


@dataclasses.dataclass(frozen=True)
class Conversation:
    """A prompt behind earlier turns.

    `str` of it is the prompt of a model without a template: all texts in one line.

    Attributes:
      turns: (prompt, answer) of each earlier turn.
      prompt: the last prompt.
    """

    turns: tuple[tuple[str, str], ...]
    prompt: str

    def __str__(self) -> str:
        """Join prompts and answers, each answer with a full stop."""
        earlier = [
            f"{prompt} {answer.strip().rstrip('.')}." for prompt, answer in self.turns
        ]
        return " ".join([*earlier, self.prompt])


Prompt = str | Conversation


class ChatTemplate:
    """The chat template of a tokenizer of transformers."""

    def __init__(self, tokenizer: Any):
        """Check the template by a short conversation.

        Raises:
          ValueError: there is no template, it fails, or it writes control tokens that
            the tokenizer does not have.
        """
        self._tokenizer = tokenizer
        if not tokenizer.chat_template:
            raise ValueError(
                "the tokenizer has no chat template (chat_template.jinja, or "
                "chat_template in tokenizer_config.json): prompt_template must be plain"
            )
        self._template = ""
        example = Conversation(((_QUESTION, _ANSWER),), _QUESTION)
        try:
            self._template = tokenizer.get_chat_template()
            if "strftime_now" in self._template:
                self._template = _DATE_MACRO + self._template
            written = self.opening(example) + self.complete(example, _ANSWER)
        except Exception as error:  # of jinja, or raised by the template
            message = " ".join(str(error).split())
            raise ValueError(f"the chat template fails: {message}") from error
        for token in _CONTROL_TOKEN.findall(written):
            if len(self._encode(token)) != 1:
                raise ValueError(
                    f"the chat template writes {token}, which is no token of the "
                    "tokenizer"
                )

    def opening(self, prompt: Prompt) -> str:
        """Write a conversation up to the place where the answer begins."""
        return self._write(_messages(prompt), add_generation_prompt=True)

    def complete(self, prompt: Prompt, answer: str) -> str:
        """Write a conversation with the answer and what follows it."""
        answered = {"role": "assistant", "content": answer.strip()}
        return self._write([*_messages(prompt), answered], add_generation_prompt=False)

    def end_of_turn(self) -> int | None:
        """Return the id of the first special token behind an answer; None = none."""
        written = self.complete(_QUESTION, _ANSWER)
        _, _, rest = written.rpartition(_ANSWER)
        added = self._tokenizer.backend_tokenizer.get_added_tokens_decoder()
        special = {token_id for token_id, token in added.items() if token.special}
        return next((i for i in self._encode(rest) if i in special), None)

    def _encode(self, text: str) -> list[int]:
        backend = self._tokenizer.backend_tokenizer
        return backend.encode(text, add_special_tokens=False).ids

    def _write(self, messages: list[dict[str, str]], **options: bool) -> str:
        return self._tokenizer.apply_chat_template(
            messages,
            chat_template=self._template,
            tokenize=False,
            enable_thinking=False,  # answers are short
            date_string=FIXED_DATE,
            **options,
        )


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    """Return the messages of a conversation, which ends with the user's."""
    if isinstance(prompt, str):
        prompt = Conversation((), prompt)
    texts = [text for turn in prompt.turns for text in turn] + [prompt.prompt]
    roles = ("user", "assistant")
    return [
        {"role": roles[index % 2], "content": text.strip()}
        for index, text in enumerate(texts)
    ]
