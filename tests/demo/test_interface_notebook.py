"""The notebook of the Python interface is executed, and is kept without outputs.

Its cells with the tag "slow" evaluate, train and score, the latter two on Ray.
"""

from pathlib import Path
from typing import Any

import nbformat
import pytest
from nbclient import NotebookClient

from melanoma.model import bundle as bundles

NOTEBOOK = Path(__file__).parents[2] / "melanoma" / "demo" / "interface.ipynb"


def executed(folder: Path, without: str | None = None) -> list[Any]:
    """What the cells show that end in a value, by its kind. They run in `folder`, less those with the tag `without`."""
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    notebook.cells = [cell for cell in notebook.cells if without not in cell.metadata.get("tags", [])]
    resources = {"metadata": {"path": str(folder)}}
    NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    outputs = (output for cell in notebook.cells for output in cell.get("outputs", []))
    return [output.data for output in outputs if output.output_type == "execute_result"]


@pytest.fixture(autouse=True)
def _has_a_reference_model() -> None:
    if not bundles.REFERENCE.exists():
        pytest.skip("this checkout has no reference model")


def test_the_notebook_is_saved_without_outputs() -> None:
    for cell in nbformat.read(NOTEBOOK, as_version=4).cells:
        if cell.cell_type == "code":
            assert (cell.outputs, cell.execution_count) == ([], None)


def test_what_is_quick_in_it_shows_itself(tmp_path: Path) -> None:
    shown = executed(tmp_path, without="slow")
    pages = "".join(data.get("text/html", "") for data in shown)
    for words in ("validation", "Not a medical device.", "p_melanoma", "not_found"):
        assert words in pages
    assert any("image/png" in data for data in shown), "the explanation"


@pytest.mark.slow
def test_the_whole_of_it_shows_itself(tmp_path: Path) -> None:
    pages = "".join(data.get("text/html", "") for data in executed(tmp_path))
    for words in ("specificity", "melanoma_auc", "Run 2", "1 empty", "alert_level"):
        assert words in pages
    assert (tmp_path / "evaluation" / "report.html").is_file()
