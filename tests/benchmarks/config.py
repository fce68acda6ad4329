"""The configuration of the scoring benchmark: `tests/benchmarks/scoring.yaml`."""

from typing import Annotated, Any, Literal

from pydantic import Field

from melanoma.config import Model, Positive

Measure = Literal["speed", "latency", "growth", "nodes", "start", "dicom", "tar"]


class BenchmarkConfig(Model):
    archive: str | tuple[str, ...]
    out: str  # a local folder for what is measured
    measure: Annotated[tuple[Measure, ...], Field(min_length=1)] = ("speed",)
    bundle: str | None = None
    images: Positive = 2000  # at most, spread over the archive
    repeat: Positive = 1  # names under which each image is scored
    rounds: Positive = 3  # of everything but growth
    resize: tuple[Positive, Positive] | None = None  # copies of this width and height; null: as they are
    many: Annotated[int, Field(ge=100)] = 50_000  # images of the larger archive of "growth"
    cores: Positive | None = None  # None: those of this machine
    peers: tuple[str, ...] | None = None  # of tests.benchmarks.peers; None: all that are installed
    score: dict[str, Any] = Field(default_factory=dict)  # keys of the scoring run, such as {batch_size: 64}
