"""Leaked and honest figures of the student steps and of our own recipe, side by side.

python jobs/ablation.py [--config configs/ablation.yaml] [key=value ...]
"""

from melanoma import cli, config, jobs

if __name__ == "__main__":
    jobs.main(config.AblationConfig, cli.run_ablation, __doc__, default="configs/ablation.yaml")
