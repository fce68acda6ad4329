"""What the HTML pages share."""

from pathlib import Path

import jinja2

from melanoma import taxonomy


def environment(folder: Path) -> jinja2.Environment:
    """For the templates of a folder: a forgotten variable is an error, and words from outside are never markup."""
    # autoescape must be on by hand: Jinja's own choice goes by the file name, and .j2 is not on its list.
    made = jinja2.Environment(
        loader=jinja2.FileSystemLoader(folder),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    made.filters |= {"count": "{:,}".format, "class_name": taxonomy.name_of}
    return made
