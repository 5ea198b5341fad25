"""Shared by all runs: settings, the run's folder, batches, progress display, trackers, samples and signals."""
