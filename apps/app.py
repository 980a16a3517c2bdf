"""The app: pictures and scans in a browser, over the same functions as the commands.

`build` makes the page; `apps.server` puts it behind accounts, private folders and security headers, and runs it.
"""

from __future__ import annotations

from html import escape
from importlib.util import find_spec

import gradio as gr

from apps.serving.context import AppContext, First
from apps.serving.faults import contain
from apps.serving.workspace import workspace_of
from hybrid.memory import format_size

NOTICE = "Research use, not a medical device"

_THEME = "() => { document.body.classList.toggle('dark'); }"
_CONFIRM = "() => [window.confirm('Delete all your files on this server, results too, and stop what is running?')]"


def build(context: AppContext, first: First = "picture") -> gr.Blocks:
    """The page, its first tab that of who asks: pictures for `restore app`, scans for `medical app`."""
    from apps.evaluate.tab import evaluate_tab
    from apps.pictures.tab import picture_tab

    tabs = {"Restore a picture": picture_tab}
    if find_spec("apps.scans.tab") is not None:
        from apps.scans.tab import scan_tab

        scans = {"Segment a scan": scan_tab}
        tabs = scans | tabs if first == "scan" else tabs | scans
    tabs["Evaluate"] = evaluate_tab
    page = gr.Blocks(title="Hybrid Imaging", analytics_enabled=False, fill_width=True)
    with page:
        _masthead(page, context)
        with gr.Tabs():
            for title, make in tabs.items():
                with gr.Tab(title):
                    make(context)
    contain(page)
    return page


def _masthead(page: gr.Blocks, context: AppContext) -> None:
    """Name and notice, who is signed in, and the button that deletes."""
    with gr.Row(elem_classes="topline"):
        head = gr.HTML(_head(context, None), scale=1)
        dark = gr.Button("Light / dark", size="sm", scale=0, min_width=110)
        delete = gr.Button("Delete my files", size="sm", variant="stop", scale=0, min_width=130, elem_id="delete-files")
        sure = gr.Checkbox(visible=False, label="Sure")

    def who(request: gr.Request) -> str:
        return _head(context, workspace_of(request).owner)

    def delete_all(sure: bool, request: gr.Request) -> None:
        if not sure:
            return
        workspace = workspace_of(request)
        context.jobs.cancel(workspace)
        context.workspaces.delete_all(workspace)
        context.audit.note(workspace.owner, "delete", outcome="done")
        gr.Info("Your files are deleted.")

    page.load(who, outputs=head, show_progress="hidden", queue=False)
    dark.click(None, js=_THEME)
    delete.click(delete_all, sure, js=_CONFIRM).then(None, js="() => window.setTimeout(() => location.reload(), 900)")


def _head(context: AppContext, owner: str | None) -> str:
    signed_in = owner is not None and not owner.startswith("browser-")
    who = f'Signed in as <b>{escape(owner or "")}</b> <a href="{escape(context.prefix)}/logout">Sign out</a>' if signed_in else ""
    limits = f"Files are deleted after {context.limits.keep / 3600:g} h; up to {format_size(context.limits.upload)} each."
    return (
        f'<div class="masthead"><h1>Hybrid Imaging</h1><span class="notice" role="note">{NOTICE}</span>'
        f'<span class="quiet">{limits}</span><span class="who">{who}</span></div>'
    )
