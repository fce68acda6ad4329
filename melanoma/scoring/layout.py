"""Where the files of a run lie below its output: each function gives the URI of one of them.

Everywhere here `out` is the output, a normal URI; `run_id` and `run_date` (ISO) name the run; `attempt` is that of its
plan; `shard` is counted from 0; `kind` is "scores", "rejects", "alerts" or "explanations".

OUT/
  scores/run_date=2026-11-20/run_id=ID/shard-00000.parquet    every image scored
  rejects/run_date=2026-11-20/run_id=ID/shard-00000.parquet   every image that could not be, and why
  alerts/run_date=2026-11-20/run_id=ID/alerts.parquet         one object
  explanations/run_date=2026-11-20/run_id=ID/SHA256.png       what raised an alert, in red on its picture
  plans/run_id=ID/ATTEMPT/shard-00000.parquet                 the images of one shard, in order of URI
  plans/run_id=ID/ATTEMPT/begun/shard-00000.json              while a worker is at it, see begun.py
  runs/run_id=ID/plan.json                                    the plan: with it the shards are frozen
  runs/run_id=ID/run.html                                     the run on one page
  runs/run_id=ID.json                                         the commit record, written last
  runs/key=KEY/lease.json                                     while a driver is at work, see lease.py
  deliveries/run_id=ID/CHANNEL.json                           what was sent, see deliver.py
  shown/run_id=ID.json                                        that `melanoma alerts` has shown the run, see results.py
"""

import re

from melanoma import storage

_RESULT = re.compile(
    r"/(scores|rejects|alerts|explanations)/run_date=[^/]+/run_id=[^/]+/[^/]+$"
    r"|/(runs|plans|deliveries|shown)/run_id=[^/]+(\.json$|/)"
)


def is_result(uri: str) -> bool:
    """Whether an object is one that a run has written, by its name, of whatever output."""
    return bool(_RESULT.search(uri))


def folder(out: str, kind: str, run_date: str, run_id: str) -> str:
    """The folder of a run's `kind`: scores, rejects, alerts or explanations."""
    return storage.join(out, kind, f"run_date={run_date}", f"run_id={run_id}")


def alerts(out: str, run_date: str, run_id: str) -> str:
    return storage.join(folder(out, "alerts", run_date, run_id), "alerts.parquet")


def planned_shard(out: str, run_id: str, attempt: str, shard: int) -> str:
    """The images of a shard, as they were planned."""
    return storage.join(out, "plans", f"run_id={run_id}", attempt, _shard_name(shard))


def begun_shard(out: str, run_id: str, attempt: str, shard: int) -> str:
    """Says that a shard was begun, and not ended yet."""
    return storage.join(out, "plans", f"run_id={run_id}", attempt, "begun", f"shard-{shard:05d}.json")


def result_shard(out: str, kind: str, run_date: str, run_id: str, shard: int) -> str:
    """What came of a shard; `kind`: scores or rejects."""
    return storage.join(folder(out, kind, run_date, run_id), _shard_name(shard))


def _shard_name(shard: int) -> str:
    return f"shard-{shard:05d}.parquet"


def runs(out: str) -> str:
    return storage.join(out, "runs")


def plan(out: str, run_id: str) -> str:
    return storage.join(runs(out), f"run_id={run_id}", "plan.json")


def page(out: str, run_id: str) -> str:
    return storage.join(runs(out), f"run_id={run_id}", "run.html")


def record(out: str, run_id: str) -> str:
    return storage.join(runs(out), f"run_id={run_id}.json")


def run_lease(out: str, key: str) -> str:
    return storage.join(runs(out), f"key={key}", "lease.json")


def deliveries(out: str) -> str:
    return storage.join(out, "deliveries")


def delivery(out: str, run_id: str, channel: str) -> str:
    return storage.join(deliveries(out), f"run_id={run_id}", f"{channel}.json")


def delivery_lease(out: str) -> str:
    return storage.join(deliveries(out), "lease.json")


def shown_runs(out: str) -> str:
    return storage.join(out, "shown")


def shown(out: str, run_id: str) -> str:
    return storage.join(shown_runs(out), f"run_id={run_id}.json")
