"""The web page: its components, and which action each of them starts.

One picture, chosen on the left, is what all tabs but the search are about. Tabs of what
the model cannot do are left out.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import gradio as gr

from blip2_jax.serve.page_actions import BOUNDS, PageActions, UserError
from blip2_jax.serve.page_style import NAME_EXAMPLES

NO_TEXT = "(the model wrote nothing)"


@dataclasses.dataclass(frozen=True)
class PageContent:
    """Texts and examples of the page.

    Attributes:
      title: heading.
      about: a line below it, e.g. the model's name.
      pictures: paths of example pictures.
      questions: example questions.
      texts: example texts to rank, one a line.
      searches: example texts to search.
    """

    title: str
    about: str
    pictures: Sequence[str] = ()
    questions: Sequence[str] = ()
    texts: str = ""
    searches: Sequence[str] = ()


def build_page(actions: PageActions, content: PageContent) -> gr.Blocks:
    """Build the page.

    Args:
      actions: what it does.
      content: its texts and examples.
    """
    with gr.Blocks(
        title=content.title, analytics_enabled=False, delete_cache=(600, 3600)
    ) as page:
        gr.Markdown(f"# {content.title}\n{content.about}", elem_id="head")
        with gr.Row(equal_height=False, elem_id="columns"):
            with gr.Column(scale=2, min_width=280, elem_id="picture-column"):
                picture, settings = _picture_column(content)
            with gr.Column(scale=3, min_width=300), gr.Tabs(overflow_behavior="wrap"):
                _caption_tab(actions, picture, settings)
                if actions.can_answer:
                    _chat_tab(actions, content, picture, settings)
                _score_tab(actions, content, picture)
                _words_tab(actions, picture)
                if actions.index is not None:
                    _search_tab(actions, content)
        page.load(None, js=NAME_EXAMPLES, api_visibility="private")
    return page


def _picture_column(content: PageContent) -> tuple[gr.Image, dict[str, Any]]:
    """Add the picture, its examples and the decoding settings."""
    picture = gr.Image(
        type="filepath",
        sources=["upload", "clipboard"],
        buttons=["fullscreen"],
        label="Picture",
        show_label=False,
        alt_text="The chosen picture",
        height=300,
        elem_id="picture",
    )
    # gradio would open the file, and show no message where that fails.
    picture.preprocess = _uploaded_path  # type: ignore[method-assign]
    if content.pictures:
        gr.Examples(
            [[path] for path in content.pictures],
            picture,
            label="Pictures to try",
            examples_per_page=12,
            api_visibility="private",
            elem_id="examples",
        )
    return picture, _decoding_settings()


def _uploaded_path(payload: Any) -> str | None:
    """Return the path of an uploaded file, which the actions check and decode."""
    return None if payload is None else payload.path


def _decoding_settings() -> dict[str, Any]:
    """Add the decoding settings; return their components by name."""
    slide = lambda name, value, step, label, info=None: gr.Slider(
        *BOUNDS[name], value=value, step=step, label=label, info=info
    )
    title = "Settings: length, beams, sampling"
    with gr.Accordion(title, open=False, elem_id="decoding"):
        settings: dict[str, Any] = {
            "num_beams": slide(
                "num_beams", 5, 1, "Beams", "texts searched at once; 1 is greedy"
            ),
            "max_new_tokens": slide("max_new_tokens", 30, 1, "Most tokens"),
            "min_new_tokens": slide("min_new_tokens", 0, 1, "Fewest tokens"),
            "length_penalty": slide(
                "length_penalty",
                1.0,
                0.1,
                "Length penalty",
                "higher: longer captions; answers have their own",
            ),
            "repetition_penalty": slide(
                "repetition_penalty",
                1.0,
                0.05,
                "Repetition penalty",
                "above 1: fewer words twice",
            ),
            "sample": gr.Checkbox(label="Sample: draw words at random, without beams"),
        }
        with gr.Column(visible=False) as of_samples:
            settings |= {
                "temperature": slide(
                    "temperature", 1.0, 0.05, "Temperature", "higher: rarer words"
                ),
                "top_p": slide(
                    "top_p",
                    0.9,
                    0.05,
                    "Top p",
                    "the likeliest words that together have this probability",
                ),
                "seed": gr.Number(
                    0,
                    label="Seed",
                    info="another number: another sample",
                    precision=0,
                    minimum=0,
                ),
            }
    sample = settings["sample"]
    show: Callable[[bool], Any] = lambda on: gr.Column(visible=on)
    sample.change(
        show, sample, of_samples, api_visibility="private", show_progress="hidden"
    )
    return settings


def _caption_tab(
    actions: PageActions, picture: gr.Image, settings: dict[str, Any]
) -> None:
    with gr.Tab("Caption"):
        prompt = gr.Textbox(
            label="Start of the caption",
            placeholder="optional, e.g. a photo of",
            max_lines=1,
        )
        button = gr.Button("Describe the picture", variant="primary")
        output = gr.Textbox(
            label="Caption", lines=2, interactive=False, elem_id="caption"
        )

    def describe(path: str | None, start: str, *values: Any) -> str:
        named = dict(zip(settings, values, strict=True))
        return "\n".join(actions.caption(path, start, named)) or NO_TEXT

    _on([button.click, prompt.submit], describe, [picture, prompt, *settings.values()])(
        output
    )


def _chat_tab(
    actions: PageActions,
    content: PageContent,
    picture: gr.Image,
    settings: dict[str, Any],
) -> None:
    with gr.Tab("Chat"):
        chat = gr.Chatbot(
            label="Conversation about the picture",
            height=320,
            show_label=False,
            buttons=[],
            render_markdown=False,
            elem_id="chat",
            feedback_options=None,
            placeholder="Ask about the picture. Earlier questions and answers count.",
        )
        question = gr.Textbox(label="Question", max_lines=3)
        with gr.Row():
            send = gr.Button("Ask", variant="primary", min_width=120)
            clear = gr.Button("Clear", min_width=120)
        _texts_to_try(content.questions, question, "Questions to try")

    def ask(
        path: str | None, text: str, messages: list[Any], *values: Any
    ) -> tuple[list[Any], str]:
        named = dict(zip(settings, values, strict=True))
        answer = actions.answer(path, text, _turns(messages), named)
        asked = {"role": "user", "content": text}
        return [
            *messages,
            asked,
            {"role": "assistant", "content": answer or NO_TEXT},
        ], ""

    inputs = [picture, question, chat, *settings.values()]
    _on([send.click, question.submit], ask, inputs)([chat, question])
    # Another picture begins another conversation.
    restart: Callable[[], list[Any]] = lambda: []
    for event in (clear.click, picture.change):
        event(restart, None, chat, api_visibility="private", show_progress="hidden")


def _texts_to_try(texts: Sequence[str], field: gr.Textbox, label: str) -> None:
    """Add texts that a click writes into a field, if there are any."""
    if texts:
        rows = [[text] for text in texts]
        gr.Examples(rows, field, label=label, api_visibility="private")


def _turns(messages: list[Any]) -> list[tuple[str, str]]:
    """Return the (question, answer) pairs of a conversation."""
    texts = [_plain(message["content"]) for message in messages]
    texts = ["" if text == NO_TEXT else text for text in texts]
    return list(zip(texts[::2], texts[1::2], strict=False))


def _plain(content: Any) -> str:
    """Return the text of a message, which is a string or a list of parts."""
    if isinstance(content, str):
        return content
    return " ".join(part.get("text", "") for part in content)


def _score_tab(actions: PageActions, content: PageContent, picture: gr.Image) -> None:
    with gr.Tab("Rank"):
        texts = gr.Textbox(
            content.texts, label="Texts, each on its own line", lines=4, max_lines=12
        )
        button = gr.Button("Rank the texts", variant="primary")
        output = gr.HTML(elem_id="scores", min_height=40)
    _on([button.click], actions.score, [picture, texts])(output)


def _words_tab(actions: PageActions, picture: gr.Image) -> None:
    with gr.Tab("Words"):
        gr.Markdown(
            "The model describes the picture; for each word you see the parts of the "
            "picture on which it depends."
        )
        text = gr.Textbox(
            label="Text",
            placeholder="optional: a text of your own",
            max_lines=1,
        )
        button = gr.Button("Show the words", variant="primary")
        words = gr.Radio(
            [], label="Choose a word", type="index", visible=False, elem_id="words"
        )
        view = gr.Image(
            label="What the word depends on",
            show_label=False,
            alt_text="The picture, bright where the word depends on it",
            interactive=False,
            buttons=["fullscreen"],
            format="png",
            elem_id="overlay",
        )
        state = gr.State()

    def show(path: str | None, given: str) -> tuple[Any, Any, Any]:
        pixels, attention = actions.word_attention(path, given, "")
        choices = [(word, number) for number, word in enumerate(attention.words)]
        first = actions.overlay(pixels, attention.maps[0])
        return gr.Radio(choices, value=0, visible=True), first, (pixels, attention.maps)

    def choose(number: int | None, computed: Any) -> Any:
        if number is None or computed is None:
            return None
        pixels, maps = computed
        return actions.overlay(pixels, maps[number])

    _on([button.click, text.submit], show, [picture, text])([words, view, state])
    _on([words.input], choose, [words, state])(view)


def _search_tab(actions: PageActions, content: PageContent) -> None:
    index = actions.index
    assert index is not None
    with gr.Tab("Search"):
        gr.Markdown(f"Finds pictures among {len(index):,} by what they show.")
        text = gr.Textbox(label="What to find", max_lines=1)
        _texts_to_try(content.searches, text, "Searches to try")
        count = gr.Slider(1, 24, 8, step=1, label="Number of pictures")
        button = gr.Button("Search", variant="primary")
        gallery = gr.Gallery(
            label="Found",
            show_label=False,
            columns=4,
            object_fit="contain",
            buttons=[],
            elem_id="found",
            height="auto",
        )

    def search(query: str, number: float) -> list[tuple[Any, str]]:
        found = actions.search(query, int(number))
        return [(hit.pixels, hit.caption) for hit in found]

    _on([button.click, text.submit], search, [text, count])(gallery)


def _on(
    events: Sequence[Any], action: Callable[..., Any], inputs: Sequence[Any]
) -> Callable[[Any], None]:
    """Connect events with an action whose `UserError` is shown on the page.

    Returns:
      A function that takes the components of the results.
    """

    def run(*values: Any) -> Any:
        try:
            return action(*values)
        except UserError as error:
            raise gr.Error(str(error), print_exception=False, duration=8) from None

    def connect(outputs: Any) -> None:
        for event in events:
            event(run, list(inputs), outputs, api_visibility="private")

    return connect
