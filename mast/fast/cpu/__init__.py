"""CPU kernels in C++: compiled on first use with the system's compiler, absent where there is none."""

from mast.fast.cpu.build import load

__all__ = ["load"]
