"""Ground floor of the suite: data, transforms, backbones, checkpoints, features, records.

It knows no method, no evaluation and no table.
"""

__version__ = "0.1.0"
