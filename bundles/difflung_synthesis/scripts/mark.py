"""The mark that every painted CT carries in its file."""

import nibabel
import numpy


def synthetic_header() -> nibabel.Nifti1Header:
    """Return a NIfTI header for HU as float32 whose description says that the CT is synthetic.

    Example:
        >>> synthetic_header()["descrip"].item()
        b'SYNTHETIC difflung_synthesis'
    """
    header = nibabel.Nifti1Header()
    header.set_data_dtype(numpy.float32)
    header.set_xyzt_units("mm")
    header["descrip"] = "SYNTHETIC difflung_synthesis"
    return header
