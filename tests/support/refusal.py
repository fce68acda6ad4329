"""How a command refuses."""

import re
from typing import Any


def sentence(said: Any, code: int = 2) -> str:
    """The one line that a refusal is."""
    assert (said.code, said.out) == (code, "")
    found = re.fullmatch(r"melanoma: ([^\n]+)\n", said.err)
    assert found, said.err
    return found[1]
