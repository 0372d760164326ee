"""The engine as a library: no queue, no database, no server."""

import torch
from PIL import Image

from farm.spec.job import JobSpec
from farm.worker.engine import Engine
from farm.worker.memory import profiles
from farm.worker.models.cache import ModelCache
from farm.worker.models.catalogue import builtin_folder, scan

device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
profile = profiles.by_name("24gb" if device.type == "cuda" else "cpu")
models = ModelCache(scan([builtin_folder()]), profile, device)
with Engine(models, profile, device) as engine:
    common = {"checkpoint": "demo", "width": 128, "height": 128, "cfg_scale": 3.0, "seed": 1}
    specs = [JobSpec(prompt=f"a red {thing}", **common) for thing in ("apple", "car")]
    futures = [engine.submit(spec.prompt, spec) for spec in specs]
    for spec, future in zip(specs, futures, strict=True):
        Image.fromarray(future.result().image).save(f"{spec.prompt}.png")
