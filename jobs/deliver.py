"""Send the new alerts of the last nights by webhook and e-mail, each once.

ray job submit --working-dir . -- python jobs/deliver.py --config configs/deliver.yaml out=s3://results [key=value ...]
"""

from melanoma.cli import alerts, jobs
from melanoma.scoring.config import DeliverConfig

if __name__ == "__main__":
    jobs.main(DeliverConfig, alerts.run_deliver, __doc__)
