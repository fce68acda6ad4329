"""Studies on top of `melanoma.training.fit` and `train`: ablation, recipes, search."""
