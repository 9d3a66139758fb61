"""Random views of images: their parameters, how they are rendered, and how they are batched."""
