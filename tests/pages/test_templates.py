"""What the HTML pages share stands once, and words from outside are never markup."""

import re
from pathlib import Path

import jinja2
import pytest

import melanoma
from melanoma.pages import templates

ROOT = Path(melanoma.__file__).parent
PAGES = sorted(ROOT.glob("*/*.html.j2"))
SHARED = ROOT / "pages" / "page.css.j2"


def rules(text: str) -> set[tuple[str, str]]:
    """Selector and declarations of each CSS rule, those within @media included."""
    found = re.findall(r"^ *([^{}\n%]+?) *\{([^{}%#]*?)\}", text, re.MULTILINE)
    return {(selector.strip(), " ".join(declarations.split())) for selector, declarations in found}


@pytest.mark.parametrize("page", [p for p in PAGES if p.parent != SHARED.parent], ids=lambda page: page.name)
def test_a_rule_that_pages_share_stands_once(page: Path) -> None:
    assert page.read_text(encoding="utf-8").startswith('{% extends "page.html.j2" %}')
    particular = "".join(p.read_text(encoding="utf-8") for p in (page, *page.parent.glob("*.css.j2")))
    assert rules(particular)
    assert not rules(particular) & rules(SHARED.read_text(encoding="utf-8"))


def test_words_are_no_markup_and_a_forgotten_variable_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "a.html.j2").write_text(
        '{% extends "page.html.j2" %}'
        "{% block title %}{{ name }}{% endblock %}{% block body %}{{ 1234 | count }}{% endblock %}"
    )
    template = templates.environment(tmp_path).get_template("a.html.j2")
    html = template.render(name="<script>")
    assert "<title>&lt;script&gt;</title>" in html
    assert "default-src 'none'" in html
    assert "1,234" in html
    with pytest.raises(jinja2.UndefinedError, match="name"):
        template.render()
