"""Builds the CPU kernels where a C++ compiler is found, and lists the packages; everything else is in setup.cfg.

Each instruction set is a library of its own, from the same source; the best one for the processor is loaded at run
time. They are plain C libraries: nothing of Python or torch is compiled against. Without a compiler the build goes on
with a warning, and surgery says at run time that it lacks its kernels.
"""

import platform

from setuptools import Extension, find_packages, setup

WIDE = {
    "avx2": ["-mavx2", "-mfma"],
    "avx512": ["-mavx512f", "-mavx512bw", "-mavx512dq", "-mavx512vl", "-mfma", "-mprefer-vector-width=512"],
}
X86 = platform.machine().lower() in {"x86_64", "amd64"}

setup(
    # recipes/ is data at the top of the repository, and surgery/recipes in a wheel
    packages=[*find_packages(include=["surgery", "surgery.*"]), "surgery.recipes"],
    package_dir={"surgery.recipes": "recipes"},
    ext_modules=[
        Extension(
            f"surgery.methods.pix.ops.cpu._pix_{isa}",
            ["surgery/methods/pix/ops/cpu/pix_cpu.cpp", "surgery/methods/pix/ops/cpu/dispatcher.cpp"],
            depends=[f"surgery/methods/pix/ops/cpu/{name}.h" for name in ("vectors", "site", "pool", "fuse", "spread")],
            extra_compile_args=["-std=c++17", "-O3", "-g0", "-fvisibility=default", "-Wno-psabi", *flags],
            extra_link_args=["-pthread", "-ldl"],
            language="c++",
            py_limited_api=True,
            optional=True,
        )
        for isa, flags in ({"baseline": [], **WIDE} if X86 else {"baseline": []}).items()
    ],
)
