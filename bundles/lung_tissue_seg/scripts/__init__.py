"""What MONAI lacks for the segmenter.

Inference needs ``cases``, ``dicom`` and ``lungs``: which CTs to label, and where their lungs are. Networks that other
programs compute need ``onnx_network`` or ``triton_network``. All else serves training and evaluation.
"""
