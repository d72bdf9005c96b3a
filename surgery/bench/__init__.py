"""How fast a converted model really is, beside the original and beside the model with its sites for free."""

from surgery.bench.networks import bench_network
from surgery.core.run_setting import Setting
from surgery.core.timing import Timing, interleaved

__all__ = ["Setting", "Timing", "bench_network", "interleaved"]
