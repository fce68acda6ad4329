"""One night over the same images with two models: alerts per 1,000, melanomas found, seconds.

python -m tests.benchmarks.nights CATALOG BUNDLE... [--images N]

The images are those of the test split that no bundle has seen in its training or validation, N of them (1,000) drawn by
a fixed seed, scored from files by `melanoma score` as a night is, in a process of its own. Melanomas are found where
they are raised, at review or urgent; no alert is explained.
"""

import argparse
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pyarrow.parquet as pq

from melanoma import taxonomy
from melanoma.catalog import schema, seen
from melanoma.evaluation.intervals import proportion
from melanoma.model import bundle as bundles


def unseen(catalog: str, models: list[str], count: int) -> pd.DataFrame:
    """Rows of the catalog's test split that all models see for the first time."""
    frame = schema.read(catalog)
    rows = frame[frame["error"].isna() & (frame["split"] == "test")].reset_index(drop=True)
    known = np.zeros(len(rows), dtype=bool)
    for model in models:
        known |= seen.was_seen(bundles.load(model).training_images, rows).to_numpy()
    rows = rows[~known].sort_values("uri").reset_index(drop=True)
    drawn = np.random.default_rng(0).permutation(len(rows))[:count]
    return rows.iloc[np.sort(drawn)]


def night(rows: pd.DataFrame, model: str, folder: Path) -> dict[str, Any]:
    manifest, out = folder / "archive.csv", folder / "out"
    pd.DataFrame({"image_uri": rows["uri"]}).to_csv(manifest, index=False)
    config = folder / "score.yaml"
    config.write_text(f"archive: {manifest}\nout: {out}\nbundle: {model}\nexplained: 0\n")
    command = [sys.executable, "-m", "melanoma.cli", "score", str(manifest), "--out", str(out), "--config", str(config)]
    subprocess.run([*command, "--json"], check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    (record,) = (json.loads(path.read_text()) for path in (out / "runs").glob("*.json"))
    scores = pq.read_table(out / "scores").to_pandas().set_index("image_uri")
    level = scores["alert_level"].reindex(rows["uri"]).to_numpy()
    groups = pd.factorize(rows["group_id"])[0]
    raised = np.isin(level, ("review", "urgent"))
    is_melanoma = (rows["label"] == taxonomy.MELANOMA).to_numpy()
    is_benign = np.array([taxonomy.malignant_of(label) is False for label in rows["label"]])
    return {
        "scored": int(pd.notna(level).sum()),
        "alerts per 1,000": 1000 * float(raised.mean()),
        "urgent per 1,000": 1000 * float((level == "urgent").mean()),
        "benign images": int(is_benign.sum()),
        "benign images raised": int((raised & is_benign).sum()),
        "melanomas": int(is_melanoma.sum()),
        "melanomas found": int((raised & is_melanoma).sum()),
        "found": proportion(raised[is_melanoma], groups[is_melanoma]),
        "seconds of the workers": record["stages"]["seconds"],
        "seconds of the night": record["seconds"],
        "model": record["model_version"],
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("catalog")
    parser.add_argument("bundles", nargs="+", metavar="BUNDLE")
    parser.add_argument("--images", type=int, default=1000)
    arguments = parser.parse_args()
    rows = unseen(arguments.catalog, arguments.bundles, arguments.images)
    counts = rows["source"].value_counts()
    print(f"{len(rows)} images: {', '.join(f'{number} of {name}' for name, number in counts.items())}")
    for model in arguments.bundles:
        with tempfile.TemporaryDirectory() as folder:
            for name, value in night(rows, model, Path(folder)).items():
                print(f"  {name}: {value}", flush=True)


if __name__ == "__main__":
    main()
