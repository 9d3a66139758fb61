"""Figures of no paper: what our own runs look like."""
