"""Train a bundle as configured.

ray job submit --working-dir . -- python jobs/train.py --config configs/train.yaml [key=value ...]
"""

from melanoma.cli import jobs, train
from melanoma.training.config import TrainConfig

if __name__ == "__main__":
    jobs.main(TrainConfig, train.run_train, __doc__)
