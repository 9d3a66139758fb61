"""Checkpoints of any code base: read without running their code, recognised, loaded whole or
refused."""
