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

CSS = """
.gradio-container {max-width: 1200px !important; margin: 0 auto !important}
table.scores {width: 100%; border-collapse: collapse; color: var(--body-text-color)}
table.scores th, table.scores td {text-align: left; padding: 6px 10px;
  border-bottom: 1px solid var(--border-color-primary); overflow-wrap: anywhere}
table.scores td:not(:first-child), table.scores th:not(:first-child) {
  text-align: right; white-space: nowrap; font-variant-numeric: tabular-nums}
#words .wrap {gap: 4px}
#words label {padding: 4px 10px}
#words input {margin-right: 6px}
@media (max-width: 640px) {
  .gradio-container {padding: 8px !important}
  table.scores td:not(:first-child), table.scores th:not(:first-child) {
    white-space: normal}
}
"""


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


def theme() -> gr.themes.Base:
    """Return a theme that loads no fonts of other hosts."""
    fonts = ("system-ui", "-apple-system", "Segoe UI", "sans-serif")
    mono = ("ui-monospace", "Consolas", "monospace")
    soft = gr.themes.Soft(primary_hue="blue", font=fonts, font_mono=mono)
    # White on the theme's own blue has too little contrast.
    colors = {
        "button_primary_background_fill": "*primary_700",
        "button_primary_background_fill_hover": "*primary_800",
        "block_title_text_color": "*primary_700",
        "block_label_text_color": "*primary_700",
    }
    dark = {f"{name}_dark": colors[name] for name in list(colors)[:2]}
    return soft.set(**colors, **dark)


def build_page(actions: PageActions, content: PageContent) -> gr.Blocks:
    """Build the page.

    Args:
      actions: what it does.
      content: its texts and examples.
    """
    with gr.Blocks(
        title=content.title, analytics_enabled=False, delete_cache=(600, 3600)
    ) as page:
        gr.Markdown(f"# {content.title}\n{content.about}")
        with gr.Row(equal_height=False):
            with gr.Column(scale=2, min_width=280):
                picture, settings = _picture_column(content)
            with gr.Column(scale=3, min_width=300), gr.Tabs(overflow_behavior="wrap"):
                _caption_tab(actions, picture, settings)
                if actions.can_answer:
                    _chat_tab(actions, content, picture, settings)
                _score_tab(actions, content, picture)
                _words_tab(actions, picture)
                if actions.index is not None:
                    _search_tab(actions, content)
    return page


def _picture_column(content: PageContent) -> tuple[gr.Image, dict[str, Any]]:
    """Add the picture, its examples and the decoding settings."""
    picture = gr.Image(
        type="filepath",
        image_mode=None,  # the file as it is: it is checked before it is decoded
        sources=["upload", "clipboard"],
        buttons=["fullscreen"],
        label="Picture",
        alt_text="The chosen picture",
        height=300,
        elem_id="picture",
    )
    if content.pictures:
        gr.Examples(
            [[path] for path in content.pictures],
            picture,
            label="Pictures to try",
            examples_per_page=12,
            api_visibility="private",
        )
    return picture, _decoding_settings()


def _decoding_settings() -> dict[str, Any]:
    """Add the decoding settings; return their components by name."""
    slide = lambda name, value, step, label, info=None: gr.Slider(
        *BOUNDS[name], value=value, step=step, label=label, info=info
    )
    with gr.Accordion("How the text is written", open=False, elem_id="decoding"):
        settings: dict[str, Any] = {
            "num_beams": slide("num_beams", 5, 1, "Beams", "1 is greedy decoding"),
            "max_new_tokens": slide("max_new_tokens", 30, 1, "Most tokens"),
            "min_new_tokens": slide("min_new_tokens", 0, 1, "Fewest tokens"),
            "length_penalty": slide(
                "length_penalty", 1.0, 0.1, "Length penalty", "of captions"
            ),
            "repetition_penalty": slide(
                "repetition_penalty", 1.0, 0.05, "Repetition penalty"
            ),
            "sample": gr.Checkbox(label="Draw the words at random (one beam)"),
            "temperature": slide("temperature", 1.0, 0.05, "Temperature of samples"),
            "top_p": slide("top_p", 0.9, 0.05, "Top p of samples"),
            "seed": gr.Number(0, label="Seed of samples", precision=0, minimum=0),
        }
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
        return "\n".join(actions.caption(path, start, named))

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
            buttons=["copy"],
            render_markdown=False,
            elem_id="chat",
            feedback_options=None,
        )
        question = gr.Textbox(
            label="Question", placeholder="Ask about the picture", max_lines=3
        )
        with gr.Row():
            send = gr.Button("Ask", variant="primary")
            clear = gr.Button("Start again")
        if content.questions:
            gr.Examples(
                [[text] for text in content.questions],
                question,
                label="Questions to try",
                api_visibility="private",
            )

    def ask(
        path: str | None, text: str, messages: list[Any], *values: Any
    ) -> tuple[list[Any], str]:
        named = dict(zip(settings, values, strict=True))
        answer = actions.answer(path, text, _turns(messages), named)
        asked = {"role": "user", "content": text}
        return [*messages, asked, {"role": "assistant", "content": answer}], ""

    inputs = [picture, question, chat, *settings.values()]
    _on([send.click, question.submit], ask, inputs)([chat, question])
    # Another picture begins another conversation.
    restart: Callable[[], list[Any]] = lambda: []
    for event in (clear.click, picture.change):
        event(restart, None, chat, api_visibility="private", show_progress="hidden")


def _turns(messages: list[Any]) -> list[tuple[str, str]]:
    """Return the (question, answer) pairs of a conversation."""
    texts = [_plain(message["content"]) for message in messages]
    return list(zip(texts[::2], texts[1::2], strict=False))


def _plain(content: Any) -> str:
    """Return the text of a message, which is a string or a list of parts."""
    if isinstance(content, str):
        return content
    return " ".join(part.get("text", "") for part in content)


def _score_tab(actions: PageActions, content: PageContent, picture: gr.Image) -> None:
    with gr.Tab("Match and rank"):
        texts = gr.Textbox(
            content.texts, label="Texts, each on its own line", lines=4, max_lines=12
        )
        button = gr.Button("Rank the texts", variant="primary")
        output = gr.HTML(elem_id="scores", min_height=40)
    _on([button.click], actions.score, [picture, texts])(output)


def _words_tab(actions: PageActions, picture: gr.Image) -> None:
    with gr.Tab("Where it looked"):
        gr.Markdown(
            "Choose a word to see on which parts of the picture it depends "
            "(gradient-weighted attention of the queries)."
        )
        text = gr.Textbox(
            label="Text", placeholder="optional: the model's caption, if empty"
        )
        button = gr.Button("Show the words", variant="primary")
        words = gr.Radio([], label="Words", type="index", elem_id="words")
        view = gr.Image(
            label="What the word depends on",
            alt_text="The picture, bright where the word depends on it",
            interactive=False,
            buttons=["fullscreen"],
            height=300,
            format="png",
            elem_id="overlay",
        )
        state = gr.State()

    def show(path: str | None, given: str) -> tuple[Any, Any, Any]:
        pixels, attention = actions.word_attention(path, given, "")
        choices = [(word, number) for number, word in enumerate(attention.words)]
        first = actions.overlay(pixels, attention.maps[0])
        return gr.Radio(choices, value=0), first, (pixels, attention.maps)

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
        gr.Markdown(f"Find pictures among {len(index):,} by what they show.")
        text = gr.Textbox(label="What to find", max_lines=1)
        count = gr.Slider(1, 24, 8, step=1, label="Number of pictures")
        button = gr.Button("Search", variant="primary")
        gallery = gr.Gallery(
            label="Found",
            columns=4,
            object_fit="contain",
            buttons=[],
            elem_id="found",
            height="auto",
        )
        if content.searches:
            gr.Examples(
                [[each] for each in content.searches],
                text,
                label="Searches to try",
                api_visibility="private",
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
