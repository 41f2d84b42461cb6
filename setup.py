"""What is compiled; pyproject.toml holds everything else."""

from setuptools import Extension, setup

setup(
    # Left out where there is no C compiler or no header of Python: then Pillow reads PNG files, more slowly.
    ext_modules=[Extension('data_prep._png', ['data_prep/_png.c'], optional=True, extra_compile_args=['-O3'])],
)
