"""A `Report` as one HTML file that needs no network: data, program, style and libraries are all inside it."""

import base64
import hashlib
import html
import json
import unicodedata
from difflib import SequenceMatcher
from functools import cache
from importlib.resources import files

from transformer_jax.analysis.spotlight.report import Report, as_json

SCRIPTS = ("libraries.js", "core.js", "tokens.js", "attention.js", "output.js", "layers.js", "main.js")
"""In the order in which they use each other. `make page-libraries` makes the first; the others are read as they are."""


def render(report: Report) -> str:
    """The page. Whatever the texts hold, the browser runs nothing but the scripts of this package and loads nothing:
    the page's content security policy names the digest of each and allows no address."""
    content = as_json(report)
    for example in content["examples"]:
        for text in (*example["rows"].values(), *example["hypotheses"]):
            text["direction"] = direction(text["text"])
        for hypothesis in example["hypotheses"]:
            hypothesis["differs"] = differing(example["hypotheses"][0]["tokens"], hypothesis["tokens"])
    # "<" would let a text end the element or open a comment in it.
    data = json.dumps(content, ensure_ascii=False, separators=(",", ":"), allow_nan=False).replace("<", "\\u003c")
    libraries, program = _scripts()
    digests = " ".join(f"'sha256-{_digest(script)}'" for script in (libraries, program))
    policy = f"default-src 'none'; script-src {digests}; style-src 'unsafe-inline'; img-src data:"
    title = html.escape(f"Spotlight: {report.run}")
    return f"""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta http-equiv="Content-Security-Policy" content="{policy}">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<title>{title}</title>
<style>{_asset("style.css")}</style>
</head>
<body>
<div id="page"><noscript>This page shows its data with JavaScript, which this browser has switched off.</noscript></div>
<script type="application/json" id="report">{data}</script>
<script>{libraries}</script>
<script>{program}</script>
</body>
</html>
"""


def direction(text: str) -> str:
    """ "rtl" or "ltr", by the text's first letter that has a direction (Unicode Bidirectional Algorithm, P2 and P3)."""
    kinds = (unicodedata.bidirectional(character) for character in text)
    return "rtl" if next((kind for kind in kinds if kind in ("L", "R", "AL")), "L") in ("R", "AL") else "ltr"


def differing(best: list[str], tokens: list[str]) -> list[bool]:
    """Which of the tokens are not in a longest matching with those of the best."""
    differs = [True] * len(tokens)
    for block in SequenceMatcher(None, best, tokens, autojunk=False).get_matching_blocks():
        differs[block.b : block.b + block.size] = [False] * block.size
    return differs


@cache
def _scripts() -> tuple[str, str]:
    libraries, *parts = map(_asset, SCRIPTS)
    return libraries, f'"use strict";\n{"".join(parts)}'


def _asset(name: str) -> str:
    return (files(__package__) / "page" / name).read_text(encoding="utf8")


def _digest(script: str) -> str:
    return base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
