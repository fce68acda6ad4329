"""What the HTML pages and the model card share."""

from pathlib import Path

import jinja2

from melanoma import taxonomy


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
