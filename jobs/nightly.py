"""One night: score what is new, deliver, look at what came of it, train anew where that is due, tell somebody.

ray job submit --working-dir . -- python jobs/nightly.py --config configs/nightly.yaml [key=value ...]
"""

from melanoma.cli import jobs, nightly
from melanoma.nightly.config import NightlyConfig

if __name__ == "__main__":
    jobs.main(NightlyConfig, nightly.run_night, __doc__)
