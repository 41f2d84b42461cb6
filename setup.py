"""Package metadata and dependencies: ranges that should work. constraints.txt holds the versions that were tested."""

import pathlib

from setuptools import Extension, find_packages, setup

CORE = [
    'tensorflow>=2.21,<2.22',
    'keras>=3.15,<4',  # layers only
    'tensorflow-datasets>=4.9.10',  # the format of the record folders
    'importlib_resources',  # tensorflow-datasets needs it to write metadata and does not declare it
    'numpy>=2.0',
    'absl-py>=2.1',  # flags
    'ml-collections>=1.1',  # configs
    'tensorboard>=2.20',
    'etils[epath]>=1.10',  # paths that may be local, gs:// and so on
    'google-crc32c>=1.6',  # the checksum of the TFRecord format, without TensorFlow
    'isal>=1.7',  # ISA-L: inflates a PNG piece by piece, only as far as a crop needs, at twice the speed of zlib
    'deflate>=0.9',  # libdeflate: inflates and checks PNG files several times as fast as zlib
    'matplotlib>=3.9',  # the heat map of a confusion matrix
    'pillow>=11',  # PNG and JPEG outside of TensorFlow, pictures with text
    'tqdm>=4.66',  # progress bars
    'jinja2>=3',  # the HTML of unet.report, templates of the launchers
    'pyyaml>=6',  # Kubernetes manifests
]

setup(
    name='unet-cityscapes',
    version='0.1.0',
    description='Distributed training of U-Net on Cityscapes in TensorFlow',
    long_description=pathlib.Path(__file__).with_name('README.md').read_text(encoding='utf-8'),
    long_description_content_type='text/markdown',
    license='Apache-2.0',
    python_requires='>=3.11,<3.14',
    packages=find_packages(include=['configs', 'data_prep', 'launch', 'unet', 'unet.*']),
    # Without a C compiler or Python's headers they are left out, and Pillow, NumPy and TensorFlow do it, more slowly.
    ext_modules=[
        Extension('data_prep._png', ['data_prep/_png.c'], optional=True),
        Extension('unet._count', ['unet/_count.c'], optional=True),
        Extension('unet._pixels', ['unet/_pixels.c'], optional=True, extra_compile_args=['-O3']),
    ],
    package_data={'unet.reporting': ['*.jinja'], 'launch': ['templates/*']},
    install_requires=CORE,
    extras_require={
        'core': [],  # nothing more; the make targets name a set of extras
        'cuda': ['tensorflow[and-cuda]>=2.21,<2.22'],  # NVIDIA's libraries for the GPU
        'beam': ['apache-beam>=2.60'],  # data_prep on Dataflow, Flink or Spark
        'video': ['av>=14'],  # PyAV, FFmpeg's libraries: unet.predict on videos
        'onnx': ['tf2onnx>=1.17', 'onnxruntime>=1.20'],  # unet.export --formats=onnx; the latter checks the result
        'test': [
            'tf2onnx>=1.17',
            'onnxruntime>=1.20',
            'av>=14',
            'pytest>=8',
            'pytest-xdist>=3.6',  # two test files at a time
            'cityscapesscripts>=2.2',  # the official evaluator, to compare with
            'apache-beam>=2.60',  # the other engine of data_prep
            'pandas>=2',  # tfds.as_dataframe, which needs jinja2 too
            'kubernetes-validate>=1.35',  # the API schemas of many Kubernetes versions
        ],
        'dev': ['ruff>=0.14', 'pre-commit>=4'],
    },
)
