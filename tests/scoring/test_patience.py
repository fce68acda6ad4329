"""One patience for all that a run asks of a store, which is away in one of its phases."""

import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from melanoma import config, storage
from melanoma.demo.local_s3 import LocalS3
from melanoma.errors import MelanomaError
from melanoma.scoring import lease, run
from melanoma.scoring.config import ScoreConfig
from melanoma.scoring.run import Outcome
from tests.conftest import Said
from tests.support.faulty_proxy import PHASES, FaultyProxy, Outage, faulty_proxy

SLOW = [pytest.param(phase, fault, marks=pytest.mark.slow) for phase in PHASES for fault in ("reset", "busy", "hang")]


@pytest.fixture
def through(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[FaultyProxy], None]]:
    """Put a proxy between this process and the store."""

    def put(proxy: FaultyProxy) -> None:
        monkeypatch.setenv("AWS_ENDPOINT_URL", proxy.url)
        storage.forget_client()

    yield put
    monkeypatch.undo()
    storage.forget_client()


@pytest.fixture
def score_bucket(
    scored_in_this_process: None,
    s3: LocalS3,
    bucket: str,
    lesion: Callable[..., bytes],
    bundle_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Callable[..., Outcome]:
    """Score six images, two a shard."""
    monkeypatch.setattr(lease, "BEAT", 0.5)
    (s3.root / bucket / "archive").mkdir()
    for seed in range(6):
        (s3.root / bucket / "archive" / f"{seed}.jpg").write_bytes(lesion(("MEL", "NV")[seed % 2], seed=seed))

    def call(**values: Any) -> Outcome:
        places = {"archive": f"s3://{bucket}/archive", "out": f"s3://{bucket}/out", "bundle": str(bundle_path)}
        settings = config.load(ScoreConfig, None, **{**places, "shard_size": 2, "workers": 1, **values})
        return run.score(settings, say=lambda _: None)

    return call


def test_a_store_that_is_away_in_every_phase_is_waited_for(
    score_bucket: Callable[..., Outcome],
    s3: LocalS3,
    bucket: str,
    through: Callable[[FaultyProxy], None],
    quick_retries: None,
) -> None:
    outages: list[Outage] = []
    for pattern in PHASES.values():
        outages.append(Outage(pattern, 0.5, otherwise=outages[-1] if outages else lambda method, path: ""))
    with faulty_proxy(s3.endpoint, outages[-1]) as proxy:
        through(proxy)
        counts = score_bucket(patience=60).record.counts
    assert all(outage.requests for outage in outages)
    assert (counts.scored, counts.rejected) == (6, 0)


@pytest.mark.parametrize(
    ("phase", "fault"), [("list", "hang"), ("lease", "reset"), ("publish", "hang"), ("record", "busy"), *SLOW]
)
def test_a_store_that_stays_away_ends_the_run_after_its_patience(
    phase: str,
    fault: str,
    score_bucket: Callable[..., Outcome],
    s3: LocalS3,
    bucket: str,
    through: Callable[[FaultyProxy], None],
) -> None:
    patience = 3.0
    outage = Outage(PHASES[phase], 1000, fault)
    with faulty_proxy(s3.endpoint, outage) as proxy:
        through(proxy)
        with pytest.raises(MelanomaError, match=rf"{bucket}/.* The same command (tries again|resumes it)") as caught:
            score_bucket(patience=patience)
        assert time.monotonic() - outage.began < 2 * patience
        assert caught.value.exit_code == 3
    assert not list((s3.root / bucket / "out").glob("runs/run_id=*.json"))


@pytest.mark.parametrize("fault", ["reset", "hang"])
def test_commands_that_read_say_in_one_sentence_that_the_store_is_away(
    fault: str,
    s3: LocalS3,
    bucket: str,
    through: Callable[[FaultyProxy], None],
    impatient: None,
    command: Callable[..., Said],
    tmp_path: Path,
) -> None:
    place = f"s3://{bucket}/some"
    settings = tmp_path / "deliver.yaml"
    settings.write_text("smtp_host: localhost\nsmtp_tls: false\nmail_from: a@example.org\nmail_to: [b@example.org]\n")
    commands = [
        ("alerts", place),
        ("deliver", place, "--config", settings),
        ("evaluate", place, f"{place}.parquet", "--out", tmp_path / "out"),
        ("catalog", f"{place}.csv", "-o", tmp_path / "catalog.parquet"),
        ("predict", tmp_path / "x.jpg", "--bundle", place),
    ]
    with faulty_proxy(s3.endpoint, Outage("", 1000, fault)) as proxy:
        through(proxy)
        for words in commands:
            said = command(*words)
            assert said.code == 3, words
            assert said.err.count("\n") == 1, said.err
            assert f"The object store did not answer for {place}" in said.err
