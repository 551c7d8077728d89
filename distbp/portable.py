"""``import distbp.portable``, before anything that loads NumPy: this process computes with the portable kernels.

A script or notebook that trains with ``bits="portable"`` begins with it. The ``distbp`` command, and actors on Ray, do
without: they know the recipe first.
"""

from distbp.kernels import choose_portable, require

if not choose_portable():
    require("portable")
