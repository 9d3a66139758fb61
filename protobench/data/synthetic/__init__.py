"""The bundled synthetic data: small images of ten categories, drawn from a seed."""
