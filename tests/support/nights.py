"""Committed runs without a run: their records and alerts, for tests of who reads them."""

import datetime
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa

from melanoma import storage
from melanoma.scoring import layout, tables

ARCHIVE = "s3://ward/archive"


def write_night(
    out: Path,
    date: str,
    alerts: Sequence[float | dict[str, Any]],
    *,
    begun: str = "",
    finished: str = "",
    seconds: float = 600,
    archive: str | Sequence[str] = ARCHIVE,
    name: str = "",
) -> str:
    """A committed run: it has alerts of these probabilities, and was planned at 02:00 and finished at 03:00 of its date
    if nothing else is said. Returns its id."""
    run_id = f"{date}{name}"
    record = {
        "run_id": run_id,
        "run_date": date,
        "archive": archive,
        "planned_at": f"{begun or f'{date}T02:00:00'}+00:00",
        "finished_at": f"{finished or f'{date}T03:00:00'}+00:00",
        "seconds": seconds,
        "counts": {"listed": 1100, "scored": 1011, "rejected": 0, "alerts": len(alerts)},
    }
    storage.write_json(layout.record(str(out), run_id), record)
    rows = [
        {
            "run_id": run_id,
            "run_date": date,
            "scored_at": datetime.datetime(2026, 11, 20, 1, 2, 3, tzinfo=datetime.UTC),
            "image_uri": f"{archive if isinstance(archive, str) else archive[0]}/{date}-{rank}.jpg",
            "p_melanoma": 0.5,
            "rank": rank,
            "p_malignant": 0.9,
            "alert_level": "review",
            "diagnosis": "MEL",
            "outlier_score": 0.1,
            "copies": [],
            "model_version": "0123456789abcdef",
            **(alert if isinstance(alert, dict) else {"p_melanoma": alert}),
        }
        for rank, alert in enumerate(alerts, 1)
    ]
    storage.write_table(layout.alerts(str(out), date, run_id), pa.Table.from_pylist(rows, schema=tables.ALERTS))
    return run_id
