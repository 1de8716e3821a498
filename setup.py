"""Builds the extension module; all other packaging facts are in setup.cfg."""

from pathlib import Path
from typing import Any

from pybind11.setup_helpers import Pybind11Extension
from setuptools import setup
from setuptools.command.build_ext import build_ext

SOURCES = Path("bert_kd/runtime/native/src")
INSTRUCTIONS = {
    "kernel_avx2": ["-mavx2", "-mfma", "-mf16c"],
    "kernel_avx512": ["-mavx2", "-mfma", "-mf16c"]
    + [f"-mavx512{part}" for part in ("f", "bw", "dq", "vl", "vnni", "bf16")],
}
"""What single sources are compiled with on x86-64 (elsewhere they are empty): which of them runs is
chosen at run time, by the CPU, which `dispatch.cpp` asks for each of these and for nothing else.
"""


def instructions(platform: str) -> dict[str, list[str]]:
    """Return the flags of single sources in a build for `platform`, perhaps not this machine's."""
    if platform.startswith("macosx"):
        # One call may compile for both of Apple's: each flag is for one of them alone.
        return {
            name: [part for flag in flags for part in ("-Xarch_x86_64", flag)]
            for name, flags in INSTRUCTIONS.items()
        }
    return INSTRUCTIONS if platform.endswith(("x86_64", "amd64")) else {}


class BuildExtension(build_ext):
    """Compiles each kernel for the instructions of its own."""

    def build_extensions(self) -> None:
        compile_one = self.compiler._compile
        extra = instructions(self.plat_name)

        def compile_with_flags(
            obj: str, src: str, ext: str, cc_args: Any, postargs: list[str], pp_opts: Any
        ) -> None:
            flags = [*postargs, *extra.get(Path(src).stem, [])]
            compile_one(obj, src, ext, cc_args, flags, pp_opts)

        self.compiler._compile = compile_with_flags
        super().build_extensions()


setup(
    ext_modules=[
        Pybind11Extension(
            "bert_kd.runtime.native._native",
            sorted(map(str, SOURCES.glob("*.cpp"))),
            depends=sorted(map(str, SOURCES.glob("*.h"))),
            cxx_std=17,
            extra_compile_args=["-O3", "-fno-math-errno", "-fno-trapping-math", "-Wall", "-Wextra"],
            extra_link_args=["-pthread"],
            optional=True,
        )
    ],
    cmdclass={"build_ext": BuildExtension},
)
