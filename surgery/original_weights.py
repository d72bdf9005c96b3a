"""Loading the original network's state dict into the converted one: what surgery removed is left out, and said so."""

import warnings
from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from surgery.edit_history import MATCH, history
