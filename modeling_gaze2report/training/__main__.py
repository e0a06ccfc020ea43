"""`accelerate launch -m modeling_gaze2report.training RECIPE.yaml [key=value ...]`."""

import sys

from ..cli import main

if __name__ == "__main__":
    sys.exit(main(["train", *sys.argv[1:]]))
