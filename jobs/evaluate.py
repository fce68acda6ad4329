"""Measure a bundle on a split of a catalog.

ray job submit --working-dir . -- python jobs/evaluate.py --config configs/evaluate.yaml [key=value ...]
"""

from melanoma.cli import evaluate, jobs
from melanoma.evaluation.config import EvaluateConfig

if __name__ == "__main__":
    jobs.main(EvaluateConfig, evaluate.run_evaluate, __doc__)
