"""What each recipe is worth on sources that were left out of training.

python jobs/recipes.py [--config configs/recipes.yaml] [key=value ...]
"""

from melanoma import cli, config, jobs

if __name__ == "__main__":
    jobs.main(config.RecipesConfig, cli.run_recipes, __doc__, default="configs/recipes.yaml")
