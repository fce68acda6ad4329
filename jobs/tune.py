"""Search over the fields of a training configuration; bad trials are stopped early.

python jobs/tune.py [--config configs/tune.yaml] [key=value ...]
"""

from melanoma import cli, config, jobs

if __name__ == "__main__":
    jobs.main(config.TuneConfig, cli.run_tune, __doc__, default="configs/tune.yaml")
