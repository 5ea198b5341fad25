"""What every run has: a folder, batches, a display, trackers, samples, and a way to stop."""
