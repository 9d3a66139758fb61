"""Pretraining: one loop, one file per method."""
