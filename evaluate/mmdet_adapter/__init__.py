"""Detectors built, trained and scored by MMDetection on our backbones."""
