"""MMDetection around our backbones: operators, models, training, scores, plots."""
