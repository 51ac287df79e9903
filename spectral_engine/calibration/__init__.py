"""What the inputs of a model's layers say."""
