"""What a program needs whatever it computes: command line, errors, files, processes, signals,
state."""
