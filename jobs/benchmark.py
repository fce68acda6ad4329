"""How fast scoring is: against the limit of the machine, and against what a user would use instead.

python jobs/benchmark.py --config configs/benchmark.yaml archive=s3://archive [key=value ...]
"""

from melanoma import cli, config, jobs

if __name__ == "__main__":
    jobs.main(config.BenchmarkConfig, cli.run_benchmark, __doc__, default="configs/benchmark.yaml")
