"""Colours and layout of the web page, on a wide window and on a phone."""

from __future__ import annotations

import gradio as gr

CSS = """
.app {width: 100%; max-width: 1200px !important; margin: 0 auto}
.dark {--color-accent: var(--primary-400)}
#head h1 {margin: 0 0 4px}
button[role=tab].selected {color: var(--primary-700)}
.dark button[role=tab].selected {color: var(--primary-400)}
:focus-visible {outline: 2px solid var(--color-accent) !important;
  outline-offset: 2px}
#picture .icon-button-wrapper:not(:has(button)) {display: none}
#examples > .gallery {display: grid; grid-template-columns: repeat(6, 1fr); gap: 6px}
#examples .gallery-item {min-width: 0}
#examples .container {width: 100%; height: auto}
#examples img {width: 100% !important; aspect-ratio: 1}
#decoding button {text-align: left}
#caption textarea {field-sizing: content; height: auto !important; min-height: 60px}
#chat .top-panel {display: none}  /* a button below the chat does the same */
#chat .placeholder-content {padding: 16px; text-align: center}
#overlay, #found {min-height: 96px}
#overlay .empty, #found .empty {min-height: 90px; height: 90px}
#overlay img {max-height: 320px; object-fit: contain}
#found .grid-wrap {min-height: 0; max-height: none}
#found .thumbnail-lg {aspect-ratio: auto; height: auto; display: flex;
  flex-direction: column}
#found .thumbnail-lg img {aspect-ratio: 1; width: 100%; height: auto}
#found .caption-label {position: static; max-width: none; width: 100%; padding: 4px;
  border-radius: 0; white-space: pre-line; text-align: center; font-size: 12px;
  overflow-wrap: anywhere}
#scores table.scores {width: 100%; border-collapse: collapse; margin: 0;
  color: var(--body-text-color)}
#scores .html-container {padding: 0}
#scores table.scores, #scores table.scores * {border: 0}
#scores table.scores th, #scores table.scores td {text-align: left;
  padding: 6px 8px;
  border-bottom: 1px solid var(--border-color-primary)}
#scores table.scores :is(th, td):first-child {overflow-wrap: anywhere}
#scores table.scores :is(th, td):not(:first-child) {text-align: right;
  overflow-wrap: normal; word-break: normal; font-variant-numeric: tabular-nums}
#words .wrap {gap: 4px}
#words label {padding: 4px 10px}
#words input {margin-right: 6px}
@media (max-width: 700px) {
  .app {padding: 12px !important}
  /* One column: the picture, its examples, the tabs, and last the settings. */
  #columns {flex-direction: column; flex-wrap: nowrap}
  #picture-column {display: contents}
  #columns > *, #picture-column > * {width: 100%; min-width: 0 !important}
  #decoding {order: 1}
  #picture {height: 200px !important}
  #chat {height: 240px !important}
  button[role=tab] {padding: 0 11px !important}
  #found .grid-container {grid-template-columns: 1fr 1fr}
}
"""
# The pictures to try have no names, which a screen reader needs.
NAME_EXAMPLES = """
() => document.querySelectorAll('#examples button').forEach(
  (button, n) => button.setAttribute('aria-label', `Example picture ${n + 1}`))
"""


def theme() -> gr.themes.Base:
    """Return a theme that loads no fonts of other hosts."""
    fonts = ("system-ui", "-apple-system", "Segoe UI", "sans-serif")
    mono = ("ui-monospace", "Consolas", "monospace")
    soft = gr.themes.Soft(primary_hue="blue", font=fonts, font_mono=mono)
    # The theme's own blue and greys have less contrast than 4.5 with their ground.
    both = {
        "button_primary_background_fill": "*primary_700",
        "button_primary_background_fill_hover": "*primary_800",
        "checkbox_label_background_fill_selected": "*primary_700",
        "checkbox_border_color": "*neutral_500",
        "block_border_width": "1px",
        "block_title_background_fill": "transparent",
        "block_title_padding": "0",
        "block_label_background_fill": "*block_background_fill",
        "input_shadow": "none",
        "input_border_width": "1px",
        "input_border_color": "*neutral_400",
        "color_accent": "*primary_700",
    }
    light = {
        "block_title_text_color": "*neutral_800",
        "block_label_text_color": "*neutral_800",
        "input_placeholder_color": "*neutral_500",
        "body_text_color_subdued": "*neutral_600",
        "block_info_text_color": "*neutral_600",
        "block_border_color": "*neutral_300",
    }
    dark = {
        "input_background_fill": "*neutral_900",
        "input_border_color": "*neutral_500",
        "input_placeholder_color": "*neutral_400",
        "body_text_color_subdued": "*neutral_400",
        "block_info_text_color": "*neutral_400",
        "button_primary_background_fill_hover": "*primary_600",
    }
    same = {key: value for key, value in both.items() if key not in _ONE_VALUE}
    in_dark = {f"{name}_dark": value for name, value in (same | dark).items()}
    return soft.set(**both, **light, **in_dark)


# Properties that gradio does not distinguish between light and dark.
_ONE_VALUE = ("color_accent", "block_title_padding")
