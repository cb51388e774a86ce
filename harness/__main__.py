"""`python -m harness` is `isobudget`."""

from harness.cli import main
from harness.leaving import leave_with

if __name__ == "__main__":
    leave_with(main)
