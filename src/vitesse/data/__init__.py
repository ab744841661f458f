"""Labelled pictures on disk, their augmentation and their batches."""
