"""Leaked and honest figures of the student steps and of our own recipe, side by side.

python jobs/ablation.py [--config configs/ablation.yaml] [key=value ...]
"""

from melanoma.cli import jobs, studies
from melanoma.training.studies.config import AblationConfig

if __name__ == "__main__":
    jobs.main(AblationConfig, studies.run_ablation, __doc__, default="configs/ablation.yaml")
