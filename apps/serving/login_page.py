"""The page on which users sign in; it needs no script."""

from __future__ import annotations

from html import escape

_PAGE = """<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>Sign in - Hybrid Imaging</title>
<style>
:root {{ color-scheme: light dark; --ink: #18212b; --paper: #f4f6f8; --card: #fff; --line: #c3ccd5; --accent: #0f6674; }}
@media (prefers-color-scheme: dark) {{
  :root {{ --ink: #e7edf2; --paper: #11171d; --card: #1a222b; --line: #3a4855; --accent: #43b3c4; }}
}}
body {{ margin: 0; min-height: 100vh; display: grid; place-items: center; background: var(--paper); color: var(--ink);
  font: 16px/1.5 system-ui, "Segoe UI", Roboto, sans-serif; }}
main {{ width: min(22rem, 90vw); padding: 2rem; background: var(--card); border: 1px solid var(--line); border-radius: 12px; }}
h1 {{ margin: 0 0 .25rem; font-size: 1.35rem; }}
p {{ margin: 0 0 1.25rem; }}
label {{ display: block; margin: .9rem 0 .25rem; font-weight: 600; }}
input {{ box-sizing: border-box; width: 100%; padding: .6rem; font: inherit; color: inherit; background: var(--paper);
  border: 1px solid var(--line); border-radius: 8px; }}
button {{ width: 100%; margin-top: 1.4rem; padding: .7rem; font: inherit; font-weight: 600; color: #fff; background: #0f6674;
  border: 0; border-radius: 8px; cursor: pointer; }}
:focus-visible {{ outline: 3px solid var(--accent); outline-offset: 2px; }}
.wrong {{ margin: 1rem 0 0; padding: .5rem .75rem; border-left: 4px solid #b3261e; }}
</style>
</head>
<body>
<main>
<h1>Hybrid Imaging</h1>
<p>Research use, not a medical device.</p>
<form method="post" action="{action}">
<label for="name">Name</label>
<input id="name" name="name" autocomplete="username" autocapitalize="none" required autofocus>
<label for="password">Password</label>
<input id="password" name="password" type="password" autocomplete="current-password" required>
<button>Sign in</button>
</form>
{message}
</main>
</body>
</html>
"""


def login_page(prefix: str, message: str = "") -> str:
    """The page as HTML.

    Args:
        prefix: Path under which a proxy shows the app.
        message: What was wrong with the last try.
    """
    wrong = f'<p class="wrong" role="alert">{escape(message)}</p>' if message else ""
    return _PAGE.format(action=escape(f"{prefix}/login", quote=True), message=wrong)
