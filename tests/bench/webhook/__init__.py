"""What a webhook wait costs."""
