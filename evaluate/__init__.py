"""Evaluations of a frozen encoder. A checkpoint is their only interface: they know no method and
not one another."""
