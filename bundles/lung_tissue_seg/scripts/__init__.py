"""What MONAI lacks for the segmenter.

Inference needs ``batch``, ``cases``, ``dicom``, ``loading``, ``volumes``, ``lungs``, ``spacing`` and ``trained``: which
CTs to label and what is refused, where their lungs are, how labels come back to a file's voxels, and what the weights
were trained with. Networks that other programs compute need ``onnx_network`` or ``triton_network``. All else serves
training and evaluation.
"""
