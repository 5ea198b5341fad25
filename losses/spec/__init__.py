"""What a loss declares about itself: its inputs, settings and axes, read from its signature."""
