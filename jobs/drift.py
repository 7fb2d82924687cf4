"""`ray job submit --working-dir . -- python jobs/drift.py …`: the same as `drivetrain drift measure …`."""

import sys

from drivetrain.cli import main

if __name__ == "__main__":
    main(["drift", "measure", *sys.argv[1:]], prog_name="drivetrain")
