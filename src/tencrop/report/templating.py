"""HTML from the Jinja templates beside this module. Every value is escaped unless a template made it."""

from __future__ import annotations

from functools import cache
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup


def render(template: str, /, **values: Any) -> Markup:
    """A template of templates/ filled in; the result is Markup, so that another template includes it unescaped."""
    return Markup(_environment().get_template(template).render(**values).strip())


@cache
def _environment() -> Environment:
    # autoescape=True and not select_autoescape(): names of runs, classes and files come from strangers' data, and the
    # choice by file ending would leave one forgotten template open. StrictUndefined: a misspelled variable is an error
    # rather than an empty place on the page.
    return Environment(
        loader=PackageLoader("tencrop.report"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
