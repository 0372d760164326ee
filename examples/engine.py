"""The engine as a library: no queue, no database, no server."""

import torch
from PIL import Image

from farm.spec.job import JobSpec
from farm.worker.engine import Engine
from farm.worker.memory.profiles import by_name
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import builtin_folder, scan

device, profile = torch.device("cpu"), by_name("cpu")  # or torch.device("cuda"), by_name("24gb")
models = ModelCache(scan([builtin_folder()]), profile, device)
with Engine(models, profile, device) as engine:
    size = {"checkpoint": "demo", "width": 128, "height": 128, "cfg_scale": 3.0, "seed": 1}
    texts = ("a red apple", "a red car")
    futures = {text: engine.submit(text, JobSpec(prompt=text, **size)) for text in texts}
    for text, future in futures.items():
        Image.fromarray(future.result().image).save(f"{text}.png")
