"""What the tables of the field call a column.

HAM10000: image_id, dx. ISIC 2019: image and one column a class. ISIC 2020: image_name, patient_id, diagnosis,
benign_malignant, target. ISIC archive: isic_id, diagnosis_1 to diagnosis_5. SLICE-3D: isic_id, iddx_full, target.
PAD-UFES-20: img_id, diagnostic. BCN20000: bcn_filename, diagnosis. See `melanoma.table_files.find`.
"""

from melanoma import table_files

COLUMNS: dict[str, tuple[str, ...]] = {
    "path": table_files.LOCATIONS,
    "image_id": ("image_id", "image", "image_name", "isic_id", "img_id", "bcn_filename"),
    "label": ("label",),
    "source": ("source", "dataset"),
    "lesion_id": ("lesion_id",),
    "patient_id": ("patient_id",),
    "split": ("split",),
    "age": ("age", "age_approx"),
    "sex": ("sex", "gender"),
    "anatomic_site": (
        *("anatomic_site", "localization", "anatom_site_general", "anatom_site_general_challenge", "anatom_site_1"),
        "region",
    ),
}
"""Our columns, and what tables call each, the first that is there."""

WORDS = (
    *("benign_malignant", "diagnosis_full", "iddx_full", "dx", "isic2019_label", "diagnosis", "diagnostic"),
    *(f"{name}_{level}" for name in ("diagnosis", "iddx") for level in range(1, 6)),
)
"""Columns that say in words what an image is, where the table has no column label. What one says narrows another."""

FLAGS = ("target", "malignant", "is_malignant")
"""Columns of 1 for malignant and 0 for benign. In ISIC 2020's all that is malignant is melanoma."""
