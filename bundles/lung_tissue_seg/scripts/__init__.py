"""What MONAI lacks for the segmenter.

Inference needs ``cases``, ``dicom``, ``lungs`` and ``trained``: which CTs to label, where their lungs are, and what the
weights were trained with. Networks that other programs compute need ``onnx_network`` or ``triton_network``. All else
serves training and evaluation.
"""
