"""The templates of the HTML pages and of the model card: how they are rendered, and pictures for them."""

import base64
from pathlib import Path

import jinja2

from melanoma import taxonomy


def data_uri(picture: bytes, kind: str) -> str:
    """A picture for an `img` element of a page that needs nothing else; `kind` is "jpeg" or "png"."""
    return f"data:image/{kind};base64,{base64.b64encode(picture).decode('ascii')}"


def environment(folder: Path, html: bool = True) -> jinja2.Environment:
    """For the templates of a folder, and page.css.j2. A forgotten variable is an error; in HTML, words from outside
    are never markup."""
    # autoescape must be on by hand: Jinja's own choice goes by the file name, and .j2 is not on its list.
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader([folder, Path(__file__).parent]),
        autoescape=html,  # noqa: S701
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"count": "{:,}".format, "class_name": taxonomy.name_of}
    return made
