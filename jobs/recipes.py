"""What each recipe is worth on sources that were left out of training.

python jobs/recipes.py [--config configs/recipes.yaml] [key=value ...]
"""

from melanoma.cli import jobs, studies
from melanoma.training.studies.config import RecipesConfig

if __name__ == "__main__":
    jobs.main(RecipesConfig, studies.run_recipes, __doc__, default="configs/recipes.yaml")
