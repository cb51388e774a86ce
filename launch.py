"""The entry point for every launcher: python, deepspeed, torchrun, srun, mpirun."""

import sys

from harness.cli import main

if __name__ == "__main__":
    sys.exit(main())
