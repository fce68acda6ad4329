"""The configurations of a scoring run (`configs/score.yaml`) and of delivering its alerts (`configs/deliver.yaml`)."""

from typing import Annotated

from pydantic import Field

from melanoma.config import Date, LocalPlace, Model, Place, Positive, Share
from melanoma.model.form import NetworkForm

# Of a label of a Ray node, key or value, as Kubernetes has them; Ray would take "!cpu" or "in(a,b)" for operators.
LabelPart = Annotated[str, Field(pattern=r"^[A-Za-z0-9]([A-Za-z0-9._/-]*[A-Za-z0-9])?$")]


class DeliveryConfig(Model):
    """Where the alerts of a night go; secrets are in the environment, see `melanoma.scoring.deliver`."""

    # repr: its path is the secret of some receivers.
    webhook: Annotated[str, Field(pattern=r"^https?://")] | None = Field(None, repr=False)
    smtp_host: str | None = None
    smtp_port: Annotated[int, Field(ge=1, le=65535)] = 587
    smtp_tls: bool = True
    mail_from: str | None = None
    mail_to: tuple[str, ...] = ()
    patience: Annotated[float, Field(ge=0)] = 300  # seconds for which a receiver that fails is tried again


class DeliverConfig(DeliveryConfig):
    """The job of delivering: `configs/deliver.yaml` with ``out=``."""

    out: Place
    date: Date = None  # None: what was not delivered of the last 30 days
    resend: bool = False  # send as well what may have arrived already


class ScoreConfig(Model):
    archive: Place | tuple[Place, ...]  # folders, prefixes, manifests, inventories: see melanoma.scoring.listing
    out: Place
    bundle: Place | None = None  # None: the reference bundle, see melanoma.model.bundle
    operating_point: Place | None = None  # of `melanoma threshold`; None: the thresholds of the bundle
    run_id: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    run_date: Date = None
    all: bool = False  # score what this very model has already scored, too
    limit: Positive | None = None  # images at most, and the others in a later run; None: all
    workers: Positive | None = None  # actors that fetch, decode and predict, at most; None: as many as find room
    gpus: Annotated[int, Field(ge=0)] | None = None  # on which the network is asked, a wish; None: all; 0: none
    # Labels of the nodes that may hold workers and networks on GPUs; empty: any node that has room.
    worker_labels: dict[LabelPart, LabelPart] = Field(default_factory=dict)
    gpu_labels: dict[LabelPart, LabelPart] = Field(default_factory=dict)
    # The form of the model; auto: the compiled one where the bundle has it and no GPU is used.
    network: NetworkForm = "auto"
    batch_size: Positive = 32
    requests: Positive = 32  # objects that each worker fetches at a time
    bytes_ahead: Positive = 64 * 2**20  # that each worker holds of them at most
    patience: Annotated[float, Field(ge=0)] = 120  # seconds for which a store that does not answer is asked again
    shard_size: Positive | None = None  # images an output file; None: by the size of the archive
    max_access_share: Share = 0.25  # of the images: with more of them unreadable, the run fails at its end
    max_bytes: Positive = 64 * 2**20
    max_pixels: Positive = 64_000_000
    decode_seconds: Annotated[float, Field(gt=0, le=86_400)] = 60  # that decoding one file may take
    explained: Annotated[int, Field(ge=0)] = 50  # alerts, the first by rank, with picture and heat map on the page
    hold_back_annotated: bool = False  # no page shows pictures that may have text in them
    metrics_port: Annotated[int, Field(ge=0, le=65535)] | None = None  # of the driver, for Prometheus; null: none
    metrics_host: str = "127.0.0.1"
    log: LocalPlace | None = None  # a file to which one line of JSON a minute is added
    deliver: DeliveryConfig | None = None  # what is done with the alerts once the run is committed
