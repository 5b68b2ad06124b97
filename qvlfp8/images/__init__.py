"""Environments as images: built from their locks with BuildKit, found again by their labels.

The two doors are :func:`find` and :func:`build`; both are imported with the Docker SDK when first used.
"""

from qvlfp8.images.building import build, find
from qvlfp8.images.image import Image

__all__ = ["Image", "build", "find"]
