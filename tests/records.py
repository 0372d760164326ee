"""Rows that tests of the queue need and do not care about."""

TEMPLATE = {"checkpoint": "demo", "prompt": "p", "width": 64, "height": 64, "seed": 1}
IMAGE = {
    "path": "a.png",
    "thumb_path": "a.webp",
    "mime": "image/png",
    "sha256": "0" * 64,
    "width": 64,
    "height": 64,
    "bytes": 1,
    "infotext": "",
}
TYPICAL_IMAGE = {
    "path": "batches/000012/000345-1.png",
    "thumb_path": "batches/000012/000345-1.thumb.webp",
    "mime": "image/png",
    "sha256": "0123456789abcdef" * 4,
    "width": 512,
    "height": 768,
    "bytes": 456_789,
    "infotext": "a (red:1.2) apple number 345 on a table, highly detailed, sharp focus\n"
    "Negative prompt: blurry, dark\nSteps: 20, Sampler: Euler a, Schedule type: Karras, "
    "CFG scale: 7.0, Seed: 123456789, Size: 512x768, Model hash: abcdef0123, Model: photos_8, "
    "Version: farm 0.1.0, Farm job: 12-345, Farm profile: 24gb, Farm bucket: 8/16, "
    "Farm precision: float16",
}
"""As long as a real one."""
TYPICAL_STATS = {
    "checkpoint": "photos_8",
    "units": 7.5,
    "queue_seconds": 12.345678901234,
    "load_seconds": 0.0,
    "encode_seconds": 0.012345678901,
    "denoise_seconds": 1.234567890123,
    "decode_seconds": 0.045678901234,
    "store_seconds": 0.012345678901,
    "gpu_seconds": 0.345678901234,
    "steps": 20,
    "iterations_per_second": 16.2001,
    "forwards": 20,
    "mean_rows": 7.65,
    "buckets": [8, 16],
    "precision": None,
    "remark": None,
    "vram_active": 6_345_678_901,
    "vram_reserved": 7_345_678_901,
    "system_used": 12_345_678_901,
    "system_total": 25_345_678_901,
}
"""Of an image, as the engine measures it."""
