"""What was found, as text, pictures and pages."""
