"""What diffusers' training scripts ask of torchvision, with Pillow, for interpreters that lack it.

Pictures come out nearly as torchvision's, not bit by bit. For benchmarks that begin with the tensors.
"""

__version__ = "stand-in"
