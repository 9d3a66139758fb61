"""Data sets as lists of images, their pixels, and the bundled synthetic data."""
