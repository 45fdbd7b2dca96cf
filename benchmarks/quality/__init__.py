"""What a method or a setting is worth, in metrics."""
