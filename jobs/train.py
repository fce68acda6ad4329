"""Train a bundle as configured.

ray job submit --working-dir . -- python jobs/train.py --config configs/train.yaml [key=value ...]
"""

from melanoma import cli, config, jobs

if __name__ == "__main__":
    jobs.main(config.TrainConfig, cli.run_train, __doc__)
