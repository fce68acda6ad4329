"""No message tells a secret, however the URL is written that holds it."""

import pickle
from collections.abc import Callable
from pathlib import Path

import pytest

from melanoma import config, storage
from melanoma.demo.local_s3 import LocalS3
from melanoma.errors import InputError, MelanomaError, redacted
from melanoma.scoring.config import DeliveryConfig, ScoreConfig
from tests.conftest import Said

SECRET = [
    "s3://AKIA7:wJalr/XUtn+FEMI@bucket/x",
    "s3://AKIA7:/wJalr@bucket/x",
    "s3://:wJalr@bucket",
    "s3:/AKIA7:wJalr@bucket/x",
    "s3//AKIA7:wJalr@bucket/x",
    "S3://AKIA7:wJalr@bucket/x",
    "AKIA7:wJalr@bucket",
    "https://user:wJalr@host/x",
    "https://user:p@wJalr@host:9000/x",
    "https://user:12345wJalr@host:9000",
    "htps://wJalr@host/x",
    "http://host/x?X-Amz-Signature=wJalr&X-Amz-Expires=60",
    "https://account.blob.core.windows.net/c?sv=2026&sig=wJalr%3D",
    "https://host/x?code=wJalr",
    "htps:/host/x?wJalr",
    "s3://bucket/x?X-Amz-Credential=wJalr&X-Amz-Security-Token=wJalr",
    "postgresql://user:wJalr@host:5432/db",
    "smtp://user:wJalr'x@host",
    "http://host/x#token=wJalr",
    "AWS_SECRET_ACCESS_KEY=wJalr",
    "smtp_password=wJalr",
]
HARMLESS = [
    "s3://bucket/a@2x.jpg",
    "s3://bucket/a?b=c&d.jpg",
    "s3://arn:aws:s3:us-east-1:123:accesspoint/name/key",
    "http://127.0.0.1:9000/bucket/a@2x.jpg",
    "file:///data/a?b=c",
    "/data/Friday 12:30/a@b.jpg",
    "a@example.org, b@example.org",
    "http://host:8265/#/jobs",
]


@pytest.mark.parametrize("url", SECRET)
def test_a_secret_is_redacted(url: str) -> None:
    for message in (url, f"{url!r} is of a kind that is not read here.", f"say: {url}: it is none.", f'"{url}"'):
        assert "wJalr" not in redacted(message)
        assert "***" in redacted(message)
        assert redacted(redacted(message)) == redacted(message)
    assert redacted(f"The first words stay: {url}").startswith("The first words stay: ")


@pytest.mark.parametrize("url", HARMLESS)
def test_what_is_no_secret_stays(url: str) -> None:
    assert redacted(f"{url} cannot be read: see {url!r}.") == f"{url} cannot be read: see {url!r}."


def test_every_error_is_redacted_at_its_birth() -> None:
    for kind in (MelanomaError, InputError, storage.UnavailableError):
        error = kind("'s3://AKIA7:wJalr@bucket/x' is none.")
        assert str(error) == "'s3://***@bucket/x' is none."
        assert str(pickle.loads(pickle.dumps(error))) == str(error)
        assert "wJalr" not in repr(error)


@pytest.mark.parametrize("url", [url for url in SECRET if " " not in url])
def test_a_command_that_is_given_a_secret_does_not_repeat_it(
    url: str,
    s3: LocalS3,
    command: Callable[..., Said],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (
        ("alerts", url),
        ("catalog", url, "-o", tmp_path / "catalog.parquet"),
        ("catalog", tmp_path / "x.csv", "-o", url),
        ("evaluate", tmp_path / "bundle", url, "--out", tmp_path / "out"),
        ("evaluate", url, tmp_path / "catalog.parquet", "--out", tmp_path / "out"),
    ):
        said = command(*words)
        assert said.code in (2, 3)
        assert "wJalr" not in f"{said.out}{said.err}", words
    assert "wJalr" not in caplog.text


def test_the_address_of_a_webhook_is_not_shown() -> None:
    """With some receivers its path is the secret."""
    for address in ("htps://hooks.example.org/T0/wJalr", "hooks.example.org/T0/wJalr"):
        for model, values in (
            (DeliveryConfig, {"webhook": address}),
            (ScoreConfig, {"archive": "a", "out": "b", "deliver": {"webhook": address}}),
        ):
            with pytest.raises(
                InputError, match="webhook' is a value that is not shown: string should match"
            ) as caught:
                config.load(model, None, **values)
            assert "wJalr" not in str(caught.value)
    assert "wJalr" not in repr(DeliveryConfig(webhook="https://hooks.example.org/T0/wJalr"))


@pytest.mark.parametrize("endpoint", ["http://user:wJalr@127.0.0.1:1", "user:wJalr@127.0.0.1", "http://user:wJalr@"])
def test_the_endpoint_of_the_store_is_not_shown_with_its_password(
    endpoint: str, s3: LocalS3, command: Callable[..., Said], monkeypatch: pytest.MonkeyPatch, impatient: None
) -> None:
    with monkeypatch.context() as patch:
        patch.setenv("AWS_ENDPOINT_URL", endpoint)
        storage.forget_client()
        said = command("alerts", "s3://bucket/results")
    storage.forget_client()
    assert said.code in (2, 3)
    assert said.err.count("\n") == 1
    assert "wJalr" not in said.err
