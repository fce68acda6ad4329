from collections.abc import Callable
from pathlib import Path

import pytest

from melanoma import taxonomy
from melanoma.catalog import schema
from melanoma.catalog.build import build
from melanoma.catalog.split import split
from melanoma.errors import InputError
from melanoma.evaluation.published import PUBLISHED
from melanoma.model.manifest import Estimate
from melanoma.training.measure import Figures
from melanoma.training.studies import ablation
from melanoma.training.studies.config import AblationConfig

ROOT = Path(__file__).parents[3]


def test_the_table_has_a_row_a_step_and_an_interval_a_figure() -> None:
    half = Estimate(value=0.5, low=0.25, high=0.75)
    figures = Figures(n=9, n_melanoma=3, accuracy=half, balanced_accuracy=half, melanoma_auc=half)
    step = ablation.StepFigures(
        leaked_validation=figures,
        leaked_model_on_test=figures,
        honest_validation=figures,
        honest_test=figures,
        model_version="0",
    )
    lines = ablation.table({"plain": step, "ours": step}).splitlines()
    assert [line.startswith("|") for line in lines].count(True) == 4 + len(PUBLISHED)
    assert "| published: AnkitSalian/MelanomaDetection@9d582147 | 0.806 | 0.339 | not printed | not printed |" in lines
    assert lines[2] == "| plain |" + " 0.500 [0.250, 0.750] |" * len(ablation.COLUMNS)


@pytest.fixture
def catalog(tmp_path: Path, lesion: Callable[..., bytes]) -> str:
    for code, name in taxonomy.NAMES.items():
        (tmp_path / "set" / name).mkdir(parents=True)
        for seed in range(8):
            (tmp_path / "set" / name / f"{code}-{seed}.jpg").write_bytes(lesion(code, seed))
    return str(tmp_path / "catalog.parquet")


def test_a_catalog_without_a_test_split_is_refused(catalog: str, tmp_path: Path) -> None:
    schema.write(catalog, split(build([str(tmp_path / "set")]), validation=0.25, test=0.0, seed=0))
    with pytest.raises(InputError, match="no test split"):
        ablation.run(AblationConfig(catalog=catalog, out=str(tmp_path / "out")), print)


@pytest.mark.slow
def test_all_steps_are_trained_once(
    ray_cluster: None, catalog: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(ROOT)
    schema.write(catalog, split(build([str(tmp_path / "set")]), validation=0.25, test=0.25, seed=0))
    study = AblationConfig(
        catalog=catalog,
        repaired=catalog,
        out=str(tmp_path / "out"),
        # Two melanomas are too few for the lower bound that configs/train.yaml asks for.
        overrides=("epochs=1", "image_size=32", "network.width=4", "operating_point.bound=observed"),
    )
    said: list[str] = []
    figures = ablation.run(study, said.append)
    assert list(figures) == [*ablation.STEPS, "ours, labels repaired"]
    assert len({of_step.model_version for of_step in figures.values()}) == len(figures)  # each names its run
    assert (tmp_path / "out" / "ablation.md").read_text() == ablation.table(figures)
    # Started again, it finds its bundles and trains nothing.
    said.clear()
    assert ablation.run(study, said.append) == figures
    assert len(said) == len(figures)
