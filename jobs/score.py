"""Score an archive and publish the night's run.

ray job submit --working-dir . -- python jobs/score.py --config configs/score.yaml [key=value ...]
"""

from melanoma import cli, config, jobs

if __name__ == "__main__":
    jobs.main(config.ScoreConfig, cli.run_score, __doc__)
