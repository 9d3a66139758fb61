"""Checkpoints scored by all evaluations, and ranked."""
