"""The Python client.

    from farm.client import Farm

    batch = Farm().submit(prompt="a red apple", count=4)
    for image in batch.images():
        image.save(f"{image.ord}.png")

Every error is one of :mod:`farm.errors`, as the API raised it.
"""

from farm.client.batch import Batch
from farm.client.farm import Farm
from farm.client.job import Image, Job
from farm.client.worker import Worker

__all__ = ["Batch", "Farm", "Image", "Job", "Worker"]
