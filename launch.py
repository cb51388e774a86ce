"""The entry point for every launcher: python, deepspeed, torchrun, srun, mpirun."""

from harness.cli import main
from harness.leaving import leave_with

if __name__ == "__main__":
    leave_with(main)
