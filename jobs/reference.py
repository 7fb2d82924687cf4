"""`ray job submit --working-dir . -- python jobs/reference.py …`: the same as `drivetrain reference …`."""

import sys

from drivetrain.cli import main

if __name__ == "__main__":
    main(["reference", *sys.argv[1:]], prog_name="drivetrain")
