"""What a piece costs, in seconds and bytes."""
