"""How the page looks: system fonts, one accent, light and dark, and rules for narrow windows."""

from __future__ import annotations

import gradio as gr

SANS = ("system-ui", "-apple-system", "Segoe UI", "Roboto", "Noto Sans", "sans-serif")
MONO = ("ui-monospace", "Cascadia Mono", "Menlo", "Consolas", "monospace")


def theme() -> gr.themes.Base:
    """Gradio's base theme in our colours. Its fonts are those of the computer: none is fetched from anywhere."""
    made = gr.themes.Base(
        primary_hue=gr.themes.colors.teal,
        secondary_hue=gr.themes.colors.sky,
        neutral_hue=gr.themes.colors.slate,
        radius_size=gr.themes.sizes.radius_md,
        spacing_size=gr.themes.sizes.spacing_md,
        font=[gr.themes.Font(name) for name in SANS],
        font_mono=[gr.themes.Font(name) for name in MONO],
    )
    return made.set(
        body_background_fill="*neutral_50",
        body_background_fill_dark="*neutral_950",
        body_text_color_subdued="*neutral_600",
        body_text_color_subdued_dark="*neutral_300",
        block_background_fill="white",
        block_background_fill_dark="*neutral_900",
        block_border_width="1px",
        block_label_background_fill="transparent",
        block_label_background_fill_dark="transparent",
        button_primary_background_fill="*primary_700",
        button_primary_background_fill_hover="*primary_800",
        button_primary_background_fill_dark="*primary_700",
        button_primary_background_fill_hover_dark="*primary_600",
        button_primary_text_color="white",
    )


HEAD = '<meta name="robots" content="noindex"><meta name="color-scheme" content="light dark">'

CSS = """
.gradio-container { max-width: 1560px !important; padding: 0 1rem 1rem !important; }
footer { display: none !important; }
:focus-visible { outline: 3px solid var(--primary-500) !important; outline-offset: 2px; }

.masthead { display: flex; flex-wrap: wrap; align-items: center; gap: .35rem 1rem; }
.masthead h1 { margin: 0; font-size: 1.25rem; }
.masthead .notice { padding: .15rem .7rem; border-radius: 999px; font-weight: 600; font-size: .85rem;
  background: #fdf0d0; color: #5c3b00; border: 1px solid #e8c268; }
.dark .masthead .notice { background: #3c2d0c; color: #ffe2a3; border-color: #7d6325; }
.masthead .who { margin-left: auto; font-size: .9rem; }
.masthead .who a { margin-left: .75rem; color: var(--link-text-color); text-decoration: underline; }
.topline { align-items: center !important; }
.topline > .form, .topline > button { flex-grow: 0 !important; }

.said { margin: 0; padding: .6rem .85rem; border-radius: 8px; border-left: 4px solid var(--primary-600);
  background: var(--background-fill-secondary); line-height: 1.45; }
.said.failed { border-left-color: #c6352b; }
.said.good { border-left-color: #2e8b57; }
.said .bar { height: 8px; margin-top: .45rem; border-radius: 4px; overflow: hidden; background: var(--border-color-primary); }
.said .bar > span { display: block; height: 100%; background: var(--primary-600); }
.facts { margin: 0; font-size: .92rem; line-height: 1.5; color: var(--body-text-color); }
.facts dt { float: left; clear: left; margin-right: .4rem; font-weight: 600; }
.facts dd { margin: 0 0 .15rem; }
.quiet { color: var(--body-text-color-subdued); font-size: .88rem; line-height: 1.45; margin: .25rem 0 0; }

.pair { position: relative; width: fit-content; max-width: 100%; margin: 0 auto; --cut: 50%; border-radius: 8px; overflow: hidden;
  background: repeating-conic-gradient(#bbb 0 25%, #eee 0 50%) 0 0 / 20px 20px; }
.pair img { display: block; max-width: 100%; height: auto; margin: 0; user-select: none; }
.pair img.after { position: absolute; inset: 0; width: 100%; height: 100%; clip-path: inset(0 0 0 var(--cut)); }
.pair .layer { position: absolute; inset: 0; clip-path: inset(0 0 0 var(--cut));
  background: repeating-conic-gradient(#bbb 0 25%, #eee 0 50%) 0 0 / 20px 20px; }
.pair .edge { position: absolute; top: 0; bottom: 0; left: var(--cut); width: 2px; margin-left: -1px; background: #fff;
  box-shadow: 0 0 0 1px rgba(0, 0, 0, .55); pointer-events: none; }
.pair .edge::after { content: ""; position: absolute; top: 50%; left: 50%; width: 30px; height: 30px; border-radius: 50%;
  transform: translate(-50%, -50%); border: 2px solid #fff; box-shadow: 0 0 0 1px rgba(0, 0, 0, .55);
  background: rgba(15, 60, 70, .75); }
.pair input[type=range] { position: absolute; inset: 0; width: 100%; height: 100%; margin: 0; opacity: 0; cursor: ew-resize; }
.pair:focus-within { outline: 3px solid var(--primary-500); outline-offset: 2px; }
.pair .tag { position: absolute; top: .5rem; padding: .1rem .55rem; border-radius: 6px; font-size: .8rem; font-weight: 600;
  color: #fff; background: rgba(0, 0, 0, .62); pointer-events: none; }
.pair .tag.left { left: .5rem; }
.pair .tag.right { right: .5rem; }
.under { margin: .4rem 0 0; text-align: center; font-size: .88rem; color: var(--body-text-color-subdued); }

.scroll { overflow-x: auto; }
.came { margin: 0; padding: 0; list-style: none; font-size: .9rem; line-height: 1.45; }
.came li { margin: 0; overflow-wrap: anywhere; }
table.plain { width: 100%; border-collapse: collapse; font-size: .92rem; border: 0 !important; }
table.plain thead, table.plain tbody, table.plain tr { border: 0 !important; }
table.plain th, table.plain td { padding: .4rem .6rem; text-align: left; border: 0 !important;
  border-bottom: 1px solid var(--border-color-primary) !important; vertical-align: top; }
table.plain td.number, table.plain th.number { text-align: right; font-variant-numeric: tabular-nums; white-space: nowrap; }
table.plain td:first-child { white-space: nowrap; }
table.plain tr.failed td { color: #b3261e; }
.dark table.plain tr.failed td { color: #ff9d94; }
.links { display: flex; flex-wrap: wrap; gap: .5rem; margin: 0; padding: 0; list-style: none; }
.links a { display: inline-block; padding: .45rem .8rem; border-radius: 8px; border: 1px solid var(--border-color-primary);
  background: var(--background-fill-secondary); color: var(--body-text-color); text-decoration: none; font-size: .92rem; }
.links a:hover { border-color: var(--primary-600); }
.links a.main { background: var(--primary-700); color: #fff; border-color: var(--primary-700); }
.links a small { color: inherit !important; opacity: .8; }
.empty { display: grid; place-items: center; min-height: 300px; border: 1px dashed var(--border-color-primary);
  border-radius: 8px; color: var(--body-text-color-subdued); text-align: center; padding: 1rem; }
.plots { display: grid; grid-template-columns: repeat(auto-fit, minmax(min(100%, 350px), 1fr)); gap: 1rem; margin-top: .5rem; }
.plots figure { margin: 0; }
.plots figure.wide { grid-column: 1 / -1; }
.plots img { width: 100%; height: auto; background: #fff; border-radius: 8px; }

@media (max-width: 900px) {
  .split { flex-direction: column !important; }
  .split > * { min-width: 100% !important; }
}
"""
