"""What public student projects print of the usual recipe on the nine-class ISIC set, for the exhibit.

Read from the outputs of their notebooks at the commits that are named, and of one from its README.
"""

from dataclasses import dataclass


@dataclass(frozen=True)
class Published:
    """Accuracies that a project prints of its last model, whose copies were made by Augmentor before the split."""

    project: str
    validation: float  # of files, so that copies of one photograph lie on both sides
    test: float | None  # of the set's own Test folder; None: not printed
    training: float | None = None


PUBLISHED = (
    Published("AnkitSalian/MelanomaDetection@9d582147", 0.806, 0.339),
    Published("mamtabhat/melanoma_detection_CNN@919fe1e", 0.775, 0.40),
    Published("prtmoswal/cnn_melonama_assignment@224628c", 0.840, 0.339),
    Published("santokhsdg/MelanomaDetection@2c503c6", 0.829, None),
    Published("Mohitz4418/Melanoma-Detection-using-CNN@c36aa57", 0.800, None),
    Published("a README that names no commit", 0.9057, None, training=0.9601),
)
