"""Search over the fields of a training configuration; bad trials are stopped early.

python jobs/tune.py [--config configs/tune.yaml] [key=value ...]
"""

from melanoma.cli import jobs, studies
from melanoma.training.studies.config import TuneConfig

if __name__ == "__main__":
    jobs.main(TuneConfig, studies.run_tune, __doc__, default="configs/tune.yaml")
