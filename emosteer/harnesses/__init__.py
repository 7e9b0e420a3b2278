"""Evaluation harnesses on steered models: `inspect_ai` and `lm_eval`, each in its own terms."""
