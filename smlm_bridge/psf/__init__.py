"""Models of the point spread function: one a file, all with the verbs of ``protocol.PSF``."""
