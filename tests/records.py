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
