"""What is compiled; pyproject.toml holds everything else."""

from setuptools import Extension, setup

setup(
    # Without a C compiler or Python's headers they are left out, and Pillow, NumPy and TensorFlow do it, more slowly.
    ext_modules=[
        Extension('data_prep._png', ['data_prep/_png.c'], optional=True),
        Extension('unet._count', ['unet/_count.c'], optional=True),
        Extension('unet._pixels', ['unet/_pixels.c'], optional=True, extra_compile_args=['-O3']),
    ],
)
