"""What a table still needs, and where that runs."""
