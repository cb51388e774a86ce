"""Packaging. The symlink harness/kernels is followed, so wheels carry `harness.kernels` and no top-level `kernels`."""

from setuptools import find_namespace_packages, setup

setup(packages=find_namespace_packages(include=["harness", "harness.*"]))
