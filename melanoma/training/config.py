"""The configuration of a training: `configs/train.yaml` and its like become a `TrainConfig`."""

from typing import Annotated, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from melanoma.config import LocalPlace, Model, Place, PlaceKind, Positive, Seed, Share

BUILT_IN_NETWORKS = ("residual", "student")
LITE_NETWORKS = ("EfficientNetLite0", "EfficientNetLite1", "EfficientNetLite2")  # of melanoma.training.lite


class Network(Model):
    """A network of melanoma.training.networks, which says how to add one."""

    # residual: this project's; student: the students'; EfficientNetLite0, 1 or 2; or any of keras.applications, such as
    # EfficientNetV2B0.
    name: str = "residual"
    width: Positive = 16  # residual, student: channels of the first stage; the later stages double it
    blocks: Annotated[tuple[Positive, ...], Field(min_length=1, max_length=6)] = (2, 2, 2, 2)  # residual: of each stage
    stem: Literal[2, 4] = 2  # residual: by how much the first layer reduces the picture
    normalization: Literal["batch", "group"] = "batch"  # residual
    # How many images make their batch statistics together, by themselves ("ghost batches"); null: the whole global
    # batch, over all workers, which costs them several exchanges a layer and step.
    ghost_batch: Annotated[int, Field(ge=2)] | None = None
    dropout: Share = 0.3
    # The exponent of Shades of Gray, which makes the light of every picture grey (6 is usual); null: as it is.
    colour_constancy: Annotated[float, Field(ge=1, le=16)] | None = None
    # EfficientNetLite, keras.applications: null (from scratch), imagenet (of EfficientNetLite from a package, the extra
    # `pretrained`; of the others Keras downloads them), or a .weights.h5 or .keras file or URI of the same network
    # without its top.
    weights: Annotated[str, PlaceKind(words=("imagenet",))] | None = None
    # Likewise: epochs in which only the new head learns, and the learning rate of all the epochs after.
    frozen_epochs: Annotated[int, Field(ge=0)] = 0
    fine_tuning_rate: Annotated[float, Field(gt=0)] | None = None
    # EfficientNetLite: the stem and so many of the first blocks learn nothing, weights and statistics.
    frozen_blocks: Annotated[int, Field(ge=0)] = 0
    # EfficientNetLite: the learning rate of a block as a share of that of the block after it; the head has it whole.
    depth_decay: Annotated[float, Field(gt=0, le=1)] = 1.0

    @model_validator(mode="after")
    def _of_applications(self) -> Self:
        if self.name in BUILT_IN_NETWORKS and (self.weights or self.frozen_epochs or self.fine_tuning_rate):
            raise ValueError(
                f"weights, frozen_epochs and fine_tuning_rate are for pretrained networks, not {self.name}"
            )
        if self.name not in LITE_NETWORKS and (self.frozen_blocks or self.depth_decay < 1):
            raise ValueError(f"frozen_blocks and depth_decay are for EfficientNetLite, not {self.name}")
        return self


class Augmentation(Model):
    """One operation, with its own parameters: a method of Augmentor.Pipeline, or one of melanoma.training.augment."""

    model_config = ConfigDict(extra="allow", frozen=True)

    operation: Literal[
        "flip_left_right",
        "flip_top_bottom",
        "rotate_random_90",
        "rotate",
        "zoom",
        "shear",
        "skew",
        "random_brightness",
        "random_contrast",
        "random_color",
        "random_distortion",
        "random_erasing",
        "histogram_equalisation",
        "frame",
        "colour",
        "resolution",
        "dark_border",
        "marks",
    ]
    probability: Annotated[float, Field(gt=0, le=1)] = 0.5


class Copies(Model):
    """Augmented copies, made once before the training, of images of the training split."""

    add: Positive | None = None  # copies of every class, as the student projects do with Augmentor's ``sample(500)``
    fill_to: Positive | None = None  # a class of fewer images is filled up to this number
    augmentation: Annotated[tuple[Augmentation, ...], Field(min_length=1)]

    @model_validator(mode="after")
    def _one_way(self) -> Self:
        if (self.add is None) == (self.fill_to is None):
            raise ValueError("give either add or fill_to")
        return self


class Balance(Model):
    """Class balancing, by how often an image is drawn, how much it weighs in the loss, and by augmented copies.

    Powers: 0 leaves the classes as they are, 1 makes them count alike, and between the two the share of a class of n
    images goes with n ** (1 - power). They combine: 0.5 and 0.5 balance as much as 1 and 0 do. Copies are made first,
    and count as images for the other two.
    """

    sampling: Share = 1.0
    loss_weights: Share = 0.0
    # A class of each source counts as a class of its own: a source then tells less of the diagnosis.
    by_source: bool = False
    copies: Copies | None = None


class Question(Model):
    """How the two alert thresholds of one question are chosen, see melanoma.evaluation.operating_point."""

    sensitivity: Annotated[float, Field(gt=0, le=1)] = 0.95  # of `review`
    # What must reach it: the share of these very melanomas, or that share's one-sided 95% lower confidence bound, which
    # takes 59 melanomas for 95%.
    bound: Literal["observed", "lower"] = "observed"
    urgent_specificity: Annotated[float, Field(gt=0, le=1)] = 0.95  # of `urgent`


class OperatingPoint(Question):
    """How the alert thresholds are chosen, on the validation split: those of melanoma, and those of any malignancy."""

    # Each source of validation with melanomas enough has to reach the sensitivity, too, and not all together alone;
    # with malignant images enough, where the question is any malignancy.
    by_source: bool = False
    malignancy: Question | None = Question()  # null: the question is not asked


class Tracking(Model):
    """Where the figures of each epoch go beside the bundle; see melanoma.training.tracking."""

    tensorboard: LocalPlace | None = None  # a folder
    mlflow: str | None = None  # a tracking URI; the extra `mlflow` has to be installed
    experiment: Annotated[str, Field(min_length=1)] = "melanoma"  # of MLflow


class TrainConfig(Model):
    catalog: Place
    out: Place  # where the bundle is written
    checkpoints: Place = "out/checkpoints"  # a folder or an s3:// URI; every worker must reach it
    # The folder of this run's checkpoints. A run of the same name is resumed; without a name it is a new run.
    run_name: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")] | None = None
    seed: Seed = 0
    image_size: Annotated[int, Field(ge=32, le=1024)] = 96
    network: Network = Network()
    epochs: Positive = 40
    batch_size: Positive = 64  # over all workers
    optimizer: Literal["adamw", "sgd"] = "adamw"
    learning_rate: Annotated[float, Field(gt=0)] = 0.002
    weight_decay: Annotated[float, Field(ge=0)] = 0.02
    warmup_epochs: Annotated[float, Field(ge=0)] = 1.0
    schedule: Literal["cosine", "constant"] = "cosine"  # of the learning rate, after the warm-up
    label_smoothing: Annotated[float, Field(ge=0, lt=1)] = 0.05
    # Each image is mixed with its neighbour in the batch, by a share drawn from Beta(mixup, mixup); 0: not at all.
    mixup: Annotated[float, Field(ge=0)] = 0.0
    # What is validated and kept are weights averaged over the steps, with this momentum (0.998 averages over about 500
    # steps); null: the weights of the last step.
    averaged_weights: Annotated[float, Field(gt=0, lt=1)] | None = None
    balance: Balance = Balance()
    augmentation: tuple[Augmentation, ...] = ()
    # What does it: tasks of Ray Data, or TensorFlow operations on whole batches within the training, which are cheaper
    # and know fewer operations: see melanoma.training.graph_augment.
    augment_in: Literal["ray", "graph"] = "ray"
    # The validation figure whose best epoch is kept; "last" keeps the last epoch, whatever its figures.
    select_by: Literal["accuracy", "balanced_accuracy", "melanoma_auc", "malignant_auc", "last"] = "balanced_accuracy"
    # Stop when that figure has not risen for this number of epochs; null: all epochs are trained.
    patience: Positive | None = None
    # How many networks are trained, with the seeds seed, seed + 1, ...; the bundle's model is the mean of them.
    members: Annotated[int, Field(ge=1, le=32)] = 1
    # Over how many orientations of an image predictions are averaged: itself, mirrored, turned. Costs as many times.
    test_time_flips: Literal[1, 2, 4, 8] = 1
    operating_point: OperatingPoint = OperatingPoint()
    # Folders of pictures that are no dermoscopy, such as close-ups: the outlier score learns to refuse their like.
    others: tuple[Place, ...] = ()
    # Store kernels in half precision, which halves the bundle's file; what is measured is the network of that file.
    half_kernels: bool = False
    # A second form of the model for CPUs, in 8-bit integers, with its own calibration, thresholds and report: see
    # melanoma.training.quantize. It takes the extra `compile`.
    compile: Literal["none", "int8"] = "none"
    licence: str | None = None  # of the weights, for the model card
    # Whether the bundle's evaluation may name and show the images that it was measured on.
    show_images: bool = True
    # Train the same recipe a second time in the way of the student projects, with copies made before a split over
    # single files, and show in the report, as a warning, how good that looks.
    leaked_twin: bool = False
    # How many, or the fewest and the most: the group then grows and shrinks with the cluster.
    workers: Positive | tuple[Positive, Positive] = 1
    cpus_per_worker: Annotated[float, Field(gt=0)] = 1.0
    use_gpu: bool = False
    # mixed_bfloat16 computes in half precision, where the device gains by it: GPUs since Ampere, CPUs with AVX-512 BF16
    # or AMX. The bundle's network is float32 in any case.
    precision: Literal["float32", "mixed_bfloat16"] = "float32"
    xla: bool = False  # compile the step with XLA: gains on GPUs, loses on CPUs
    # On GPUs, take operations that give the same bits each time. They are slower, and a few do not exist: TensorFlow
    # then ends the training with an UnimplementedError. CPUs give the same bits in any case.
    deterministic: bool = True
    max_failures: Annotated[int, Field(ge=-1)] = 2
    # Never dumped, and so neither in a bundle nor beside a checkpoint: a tracking URI may hold a password.
    tracking: Tracking = Field(default=Tracking(), exclude=True, repr=False)

    @model_validator(mode="after")
    def _fewest_and_most(self) -> Self:
        if not self.worker_counts:
            raise ValueError(f"workers {self.workers} have to be the fewest and the most, in this order")
        return self

    @property
    def worker_counts(self) -> range:
        """The numbers of workers that the group may have."""
        low, high = self.workers if isinstance(self.workers, tuple) else (self.workers, self.workers)
        return range(low, high + 1)
