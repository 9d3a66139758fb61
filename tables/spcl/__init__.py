"""SPCL: the tables and figures of its paper."""
