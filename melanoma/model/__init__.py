"""A trained model and what it says: bundle, predictor, triage, outliers, explanation."""
