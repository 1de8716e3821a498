"""The teacher: loading, fine-tuning, and its answers into the logit cache."""
