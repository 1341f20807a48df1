"""Training: the loop, what it trains in pretraining and in fine-tuning, the optimizer, and the folder of a run."""
