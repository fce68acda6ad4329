"""Score an archive and publish the night's run.

ray job submit --working-dir . -- python jobs/score.py --config configs/score.yaml [key=value ...]
"""

from melanoma.cli import jobs, score
from melanoma.scoring.config import ScoreConfig

if __name__ == "__main__":
    jobs.main(ScoreConfig, score.run_score, __doc__)
