"""Measure a bundle on a split of a catalog.

ray job submit --working-dir . -- python jobs/evaluate.py --config configs/evaluate.yaml [key=value ...]
"""

from melanoma import cli, config, jobs

if __name__ == "__main__":
    jobs.main(config.EvaluateConfig, cli.run_evaluate, __doc__)
