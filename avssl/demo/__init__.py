"""The built-in demo set: twelve kinds of sounding events as real mp4 files, synthesized on first use.

What is heard is what is seen: size follows register, motion follows rhythm, glow follows loudness. Colour, place and
background tell nothing about the kind; equalizer, room and noise hide it from the mean spectrum.

The set of sources beside it is in `avssl.demo.sources`; both are made by `avssl.demo.build`.

    folder = ensure_demo()
    rows, heads = demo_rows(folder)
    manifest = Manifest.from_rows(rows, folder, heads)
"""

from avssl.demo.build import DemoError
from avssl.demo.events import CLASSES, build_demo, demo_rows, ensure_demo

__all__ = ["CLASSES", "DemoError", "build_demo", "demo_rows", "ensure_demo"]
