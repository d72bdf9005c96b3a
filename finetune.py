#!/usr/bin/env python3
"""Convert a network and fine-tune it until its accuracy is back; the same as ``python -m surgery finetune``.

python finetune.py                                   the recipe quickstart: minutes on two CPU cores, no download
python finetune.py RECIPE [key=value ...]            another recipe, with settings changed: finetune.epochs=5
"""

import sys

from surgery.training.command import main
from surgery.training.shipped_recipes import shipped_recipes

QUICKSTART = shipped_recipes()["quickstart"]

if __name__ == "__main__":
    sys.exit(main())
