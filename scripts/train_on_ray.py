"""Train on the Ray cluster that this runs in: ray submit cluster/ssh.yaml scripts/train_on_ray.py -- --workers 8.

The options are those of ``distbp train``.
"""

from __future__ import annotations

import sys

from distbp.cli.main import main

sys.argv[1:] = ["train", "--engine", "ray", *sys.argv[1:]]
main()
