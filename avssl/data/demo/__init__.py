"""The built-in demo set: twelve kinds of sounding events as real mp4 files, synthesized on first use.

What is heard is what is seen: size follows register, motion follows rhythm, glow follows loudness. Colour, place and
background tell nothing about the kind; equalizer, room and noise hide it from the mean spectrum.

    folder = ensure_demo()
    rows, heads = demo_rows(folder)
    manifest = Manifest.from_rows(rows, folder, heads)
"""

from avssl.data.demo.build import DemoError, build_demo, demo_rows, ensure_demo
from avssl.data.demo.clip import CLASSES

__all__ = ["CLASSES", "DemoError", "build_demo", "demo_rows", "ensure_demo"]
