"""`ray job submit --working-dir . -- python jobs/rescore.py …`: the same as `drivetrain rescore …`."""

import sys

from drivetrain.cli import main

if __name__ == "__main__":
    main(["rescore", *sys.argv[1:]], prog_name="drivetrain")
