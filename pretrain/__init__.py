"""The training loop and everything around it: recipe, objectives, DeepSpeed, checkpoints, validation, release."""
