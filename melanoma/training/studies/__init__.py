"""Studies on top of `melanoma.training.fit`: ablation, recipes, search, and the leaked twin."""
